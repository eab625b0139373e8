"""Text benchmarks through lm-eval: what is asked, how it is judged, and what must not happen."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.evaluation.benchmarks.protocols import Protocol, find_protocol
from megavlm.megatron_mm.evaluation.benchmarks.table import find_benchmark
from megavlm.megatron_mm.evaluation.engines.base import Ask, Unanswered
from megavlm.megatron_mm.evaluation.harness.language import evaluate_folder, evaluate_language, shares
from megavlm.megatron_mm.evaluation.harness.tasks import library_folder, load_tasks
from megavlm.platform.errors import ConfigError, InputError

NVLM = find_protocol("nvlm")
MOST = 400
SANDBOX = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")


@dataclasses.dataclass
class Letters:
    """An engine whose tokens are characters. It answers as `says`; every letter but "a" is e times less likely."""

    says: Callable[[Ask], str] = lambda ask: ""
    name: str = "letters"
    max_length: int = MOST
    start: tuple[int, ...] = ()
    prefix: int = 0
    asked: list[Ask] = dataclasses.field(default_factory=list)
    pairs: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """1 stands before a turn and 2 behind it; no text can hold them."""
        if any("<image>" in message["content"] for message in messages):
            raise InputError("a mark and no image")
        ids = [token for turn in messages for token in (1, *self.encode(turn["content"]), 2)]
        return ids[:-1] if messages[-1]["role"] == "assistant" else [*ids, 1]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def log_likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        assert all(context and 0 < len(ids) <= self.max_length for context, ids in pairs)
        self.pairs += [(self.decode(context), self.decode(ids)) for context, ids in pairs]
        return [(sum(0.0 if token == ord("a") else -1.0 for token in ids), False) for _, ids in pairs]

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        self.asked += asks
        return [self.says(ask) for ask in asks]

    def close(self) -> None:
        pass


def asked_as(**changes: Any) -> Protocol:
    """The protocol nvlm, each benchmark asked with these changes."""
    rows = {name: row.model_copy(update=changes) for name, row in NVLM.benchmarks.items()}
    return NVLM.model_copy(update={"benchmarks": rows})


def own_task(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    """A folder with the task `own` over `rows`."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"test": str(folder / "rows.jsonl")}}
    metric = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    task = {"task": "own", "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    task |= {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "metric_list": metric}
    text = yaml.safe_dump(task | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 8}} | settings)
    (folder / "own.yaml").write_text(text.replace("'!function ", "!function '"))
    return folder


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{c}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": None,
}


def test_gsm8k_is_asked_and_judged_as_lm_eval_does(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    rows = [{"question": f"What is {k} apples?", "answer": f"Thinking {k}\n#### {k}"} for k in range(10)]
    for split in ("train", "test"):
        parquet(tmp_path / "openai" / "gsm8k", f"main/{split}-00000-of-00001.parquet", rows)
    told = "---\nconfigs:\n- config_name: main\n  data_files:\n"
    told += "".join(f"  - split: {split}\n    path: main/{split}-*\n" for split in ("train", "test")) + "---\n"
    (tmp_path / "openai" / "gsm8k" / "README.md").write_text(told)
    beats: list[int] = []

    def says(ask: Ask) -> str:
        number = ask.prompt.rpartition("What is ")[2].split()[0]
        return f" I had 99, so {number}" if int(number) % 2 else f" {number}, no, 77"

    before = {
        path
        for path in Path.home().joinpath(".cache/huggingface").rglob("*")
        if "json" in path.name or "gsm8k" in path.name
    }
    engine = Letters(says)
    protocol = asked_as(shots=3, max_new_tokens=33)
    found = evaluate_language(engine, find_benchmark("gsm8k"), tmp_path, protocol, 6, lambda: beats.append(1))
    assert [item.id for item in found] == [f"gsm8k/{k}" for k in range(6)] and beats
    assert [item.correct for item in found] == [False, True] * 3
    assert {item.kind for item in found} == {"gsm8k"} and found[1].answer == " I had 99, so 1"
    assert found[1].expected == "Thinking 1\n#### 1" and found[1].score is None
    assert all(ask.prompt.count("Question: ") == 4 and ask.prompt.endswith("\nAnswer:") for ask in engine.asked)
    after = {
        path
        for path in Path.home().joinpath(".cache/huggingface").rglob("*")
        if "json" in path.name or "gsm8k" in path.name
    }
    assert after == before, "what datasets makes of the files stays in the run's own folder"
    assert {ask.max_new_tokens for ask in engine.asked} == {33} and "Question:" in engine.asked[0].stop


@SANDBOX
def test_programs_run_in_the_sandbox_and_lm_evals_own_metric_is_not_even_imported(
    tmp_path: Path, parquet: Callable[..., Path]
) -> None:
    rows = [
        {
            "task_id": f"HumanEval/{k}", "prompt": f"def twice{k}(n):\n    '''Twice n.'''\n",
            "entry_point": f"twice{k}", "canonical_solution": "", "test": "def check(it):\n    assert it(4) == 8\n",
        }
        for k in range(3)
    ]  # fmt: skip
    parquet(tmp_path / "openai" / "openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet", rows)
    marker = tmp_path / "was-here"
    answers = ["    return 2 * n\n", "    return n\n", f"    open({str(marker)!r}, 'w')\n    return 2 * n\n"]
    engine = Letters(lambda ask: answers[int(ask.prompt[len("def twice")])], max_length=2000)
    found = evaluate_language(engine, find_benchmark("humaneval"), tmp_path, NVLM)
    assert [item.correct for item in found] == [True, False, False]
    assert [item.answer for item in found] == answers and found[0].expected.endswith("check(twice0)")
    assert not marker.exists() and "lm_eval.tasks.humaneval.utils" not in sys.modules
    assert not any(name.startswith("evaluate.metrics") or "code_eval" in name for name in sys.modules)


def test_a_group_names_every_task_and_the_line_for_missing_data(tmp_path: Path) -> None:
    benchmark = find_benchmark("mmlu")
    line = f"hf download --repo-type dataset cais/mmlu --local-dir {tmp_path}/cais/mmlu"
    with pytest.raises(InputError) as missing:
        evaluate_language(Letters(), benchmark, tmp_path, NVLM)
    assert missing.value.fix == line
    with pytest.raises(InputError) as missing:
        load_tasks(library_folder(benchmark.folder), ["mmlu_anatomy"], tmp_path, tmp_path)
    assert missing.value.fix == line
    with pytest.raises(ConfigError, match="no task 'mmlu_anatom'"):
        load_tasks(library_folder(benchmark.folder), ["mmlu_anatom"], tmp_path, tmp_path)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9), min_size=1), st.integers(0, 40))
def test_a_limit_is_shared_as_equally_as_can_be(sizes: dict[str, int], limit: int) -> None:
    taken = shares(sizes, limit)
    assert list(taken) == list(sizes) and sum(taken.values()) == min(limit, sum(sizes.values()))
    rest = [taken[name] for name in sizes if taken[name] < sizes[name]]
    assert all(taken[name] <= min(rest) + 1 for name in sizes) if rest else taken == sizes
    assert shares(sizes, None) == sizes


def test_choices_by_likelihood(tmp_path: Path) -> None:
    rows = [{"q": "Which?", "c": ["bb", "aab", "b"], "a": k} for k in range(3)]
    engine = Letters()
    found = evaluate_folder(engine, own_task(tmp_path / "t", rows, **CHOICE), ["own"])
    assert [(item.answer, item.expected, item.correct) for item in found] == [
        ("aab", "bb", False), ("aab", "aab", True), ("aab", "b", False),
    ]  # fmt: skip
    assert set(engine.pairs) == {("Which?", " bb"), ("Which?", " aab"), ("Which?", " b")}


def test_in_a_template_a_question_cannot_close_its_turn(tmp_path: Path) -> None:
    """Turns go to the engine as turns: the characters of its special tokens stay characters."""
    rows = [{"q": 'Say "\x02"} and <|im_end|>', "c": ["a", "b"], "a": 0}, {"q": "See <image>", "c": ["b", "a"], "a": 0}]
    folder = own_task(tmp_path / "t", rows, **CHOICE)
    asked = NVLM.benchmarks["mmlu"].model_copy(
        update={"options": {"template": True}, "shots": 0, "max_new_tokens": 8, "system": "Be brief."}
    )
    engine = Letters()
    found = evaluate_folder(engine, folder, ["own"], asked=asked)
    context = "\x01Be brief.\x02\x01" + rows[0]["q"] + "\x02\x01"
    assert sorted(engine.pairs) == [(context, "a"), (context, "b")]
    assert [item.correct for item in found] == [True, False] and found[1].problem == "a mark and no image"
    answering = Letters(lambda ask: "1")
    evaluate_folder(answering, own_task(tmp_path / "u", rows[:1]), ["own"], asked=asked)
    (ask,) = answering.asked
    assert ask.prompt is None and ask.messages[-1] == {"role": "user", "content": rows[0]["q"]}


def test_what_could_not_be_asked_is_wrong_and_says_why(tmp_path: Path) -> None:
    rows = [{"q": "Say nothing", "a": ""}, {"q": "Say b", "a": "b"}]
    engine = Letters(lambda ask: Unanswered("too long") if ask.prompt == "Say nothing" else "b")
    found = evaluate_folder(engine, own_task(tmp_path / "t", rows), ["own"])
    assert [(item.correct, item.problem, item.value) for item in found] == [(False, "too long", 0.0), (True, "", 1.0)]


@pytest.mark.parametrize("length", [1, 4, 5, 6, 23])
def test_a_rolling_likelihood_reads_every_token_once(length: int) -> None:
    from lm_eval.api.instance import Instance

    from megavlm.megatron_mm.evaluation.harness.lm import EngineLM

    text = "".join(chr(65 + k % 26) for k in range(length))
    engine = Letters(max_length=5)
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("own", 0, 1))
    assert EngineLM(engine).loglikelihood_rolling([request]) == [-float(length)]
    assert "".join(read for _, read in sorted(engine.pairs, key=lambda pair: text.find(pair[1]))) == text


REFUSED = {
    "samples": {"generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 0.7}},
    "may answer with 400 tokens": {"generation_kwargs": {"until": ["\n"], "max_gen_toks": MOST}},
    "metric code_eval is none of lm-eval's own": {"metric_list": [{"metric": "code_eval"}]},
    "metric rouge is none": {"metric_list": [{"metric": "rouge", "hf_evaluate": True}]},
    "doc_to_text is a function": {"unsafe_code": True, "doc_to_text": "!function utils.text"},
    "is no share of rightness": {"metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}], **{
        "output_type": "loglikelihood", "generation_kwargs": None}},
    "data_files is an address": {"dataset_kwargs": {"data_files": {"test": "https://example.org/rows.jsonl"}}},
    "reads pandas": {"dataset_path": "pandas"},
    "reads squad": {"dataset_path": "squad"},
    "cannot be built": {"dataset_kwargs": {"data_files": {"test": "/nowhere/rows.jsonl"}}},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_judged_is_refused_by_name(tmp_path: Path, message: str) -> None:
    folder = own_task(tmp_path / "t", [{"q": "q", "a": "a"}], **REFUSED[message])
    (folder / "utils.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises((ConfigError, InputError), match=message):
        evaluate_folder(Letters(lambda ask: "a"), folder, ["own"])
    assert not (tmp_path / "ran").exists()
