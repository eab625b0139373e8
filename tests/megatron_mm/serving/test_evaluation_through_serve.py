"""A benchmark asked of a stage that is served: the same log-likelihoods, choices and answers as of the stage here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megavlm.megatron_mm.data.tokenizer import SHIPPED
from megavlm.megatron_mm.evaluation.engines.base import Ask, Unanswered
from megavlm.megatron_mm.evaluation.engines.megatron import MegatronEngine
from megavlm.megatron_mm.evaluation.engines.openai import EndpointEngine
from megavlm.megatron_mm.evaluation.harness.language import evaluate_folder
from megavlm.platform.errors import ConfigError

VARIABLE = "KEY_OF_THE_TESTS"
PAIRS = [("How many squares", text) for text in (" are there?", " a", " b", " c")] + [("Red", ", green and blue")]
ROWS = [{"question": f"Is {k} even?", "choices": ["yes", "no", "never"], "answer": k % 2} for k in range(5)]


@pytest.fixture(scope="module")
def served(server: Any, tools: Any) -> Iterator[EndpointEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, tools.TOKEN)
        engine = EndpointEngine(server.url, tools.NAME, key_variable=VARIABLE, tokenizer=SHIPPED / "mini")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def local(here: Any) -> MegatronEngine:
    return MegatronEngine(here.model, here.spec)


def test_log_likelihoods(served: EndpointEngine, local: MegatronEngine, here: Any) -> None:
    pairs = [(local.encode(context), local.encode(text)) for context, text in PAIRS]
    best = [*local.encode("Red")]
    for _ in range(2):
        best.append(int(here.logprobs(best)[-1].argmax()))
    pairs += [(best[:-2], best[-2:]), (best, [])]
    assert served.max_length == local.max_length == 2048
    for engine in (local, served):
        for (context, continuation), (own, greedy) in zip(pairs, engine.log_likelihoods(pairs), strict=True):
            ids, first = [*context, *continuation], len(context)
            wanted = here.logprobs(ids)[first - 1 : len(ids) - 1]
            assert own == pytest.approx(sum(wanted[k, token].item() for k, token in enumerate(continuation)), abs=1e-4)
            assert greedy == (wanted.argmax(-1).tolist() == continuation)
        assert [greedy for _, greedy in engine.log_likelihoods(pairs)] == [False] * 5 + [True] * 2


def test_answers_to_texts_chats_and_pictures(served: EndpointEngine, local: MegatronEngine, tools: Any) -> None:
    turns = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hm"})
    picture = ({"role": "user", "content": "<image>What is this? Beside <image>"},)
    asks = [
        Ask((), prompt="Red, green and", max_new_tokens=9),
        Ask(({"role": "system", "content": "Be long."}, *turns, turns[0]), max_new_tokens=9),
        Ask(picture, (tools.picture(1), tools.picture(2, 40)), max_new_tokens=9),
        Ask(picture, (tools.picture(1), b"no picture"), max_new_tokens=9),
        Ask(picture, (tools.picture(1),), max_new_tokens=9),
    ]
    wanted, found = local.generate(asks), served.generate(asks)
    assert wanted == found and all(found[:3])
    for engine in (wanted, found):
        assert [isinstance(answer, Unanswered) for answer in engine] == [False, False, False, True, True]
    stop = wanted[0][3:5]
    cut = [engine.generate([Ask((), prompt="Red, green and", max_new_tokens=9, stop=("never", stop))])[0]
           for engine in (local, served)]  # fmt: skip
    assert cut == [wanted[0][: wanted[0].index(stop)]] * 2


def test_a_benchmark_through_lm_eval(served: EndpointEngine, local: MegatronEngine, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}, "test_split": "test"}
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    task = {"task": "even", "output_type": "multiple_choice", "doc_to_text": "{{question}}", **data}
    task |= {"doc_to_choice": "choices", "doc_to_target": "answer", "metric_list": [metric]}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "even.yaml").write_text(yaml.safe_dump(task))
    wanted, found = (evaluate_folder(engine, tmp_path / "tasks", ["even"]) for engine in (local, served))
    assert wanted == found and [item.expected for item in found] == ["yes", "no", "yes", "no", "yes"]


def test_what_cannot_be_asked_is_named(server: Any, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, tools.TOKEN)
    with pytest.raises(ConfigError, match="no model 'other'"):
        EndpointEngine(server.url, "other", key_variable=VARIABLE)
    without = EndpointEngine(server.url, tools.NAME, key_variable=VARIABLE)
    with pytest.raises(ConfigError, match="need its tokenizer here"):
        without.encode("a text")
    monkeypatch.setenv(VARIABLE, "a-wrong-key")
    with pytest.raises(ConfigError) as refused:
        EndpointEngine(server.url, tools.NAME, key_variable=VARIABLE)
    assert "401" in str(refused.value) and "a-wrong-key" not in str(refused.value)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match=f"no {VARIABLE}"):
        EndpointEngine(server.url, tools.NAME, key_variable=VARIABLE)
