"""The drift meter's parts: divergences by buckets, texts, what is kept of a baseline, and whose weights that needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.config import Stages
from megavlm.megatron_mm.data.measure import template
from megavlm.megatron_mm.data.templates import TEMPLATES
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.megatron_mm.training.watchers.baseline import starts_as
from megavlm.megatron_mm.training.watchers.likeliest import bucketed, divergence, likeliest
from megavlm.megatron_mm.training.watchers.reference import Reference, read_reference
from megavlm.megatron_mm.training.watchers.texts import NO_ROW, Texts, read_texts
from megavlm.platform.errors import InputError
from megavlm.platform.shards import ShardReader, ShardWriter


@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_buckets_keep_the_probability_and_bound_the_divergence_from_below(one_process: Any, scale: float) -> None:
    draw = torch.Generator().manual_seed(int(scale))
    before, now = (scale * torch.randn(50, 300, generator=draw) for _ in range(2))
    p, q = before.double().log_softmax(-1), now.double().log_softmax(-1)
    whole, last = (p.exp() * (p - q)).sum(-1), torch.full((50,), -1e-9, dtype=torch.float64)
    for top in (1, 5, 50, 300):
        ids = likeliest(before, top)
        assert torch.equal(ids, p.topk(top).indices)
        mine, theirs = bucketed(before, ids), bucketed(now, ids)
        assert torch.allclose(mine.exp().sum(-1), torch.ones(50, dtype=torch.float64), atol=1e-6)
        found = divergence(mine, theirs)
        assert (found >= last - 1e-6).all() and (found <= whole + 1e-4 * (1 + whole)).all()  # finer buckets: never less
        last = found
    assert torch.allclose(last, whole, rtol=1e-5, atol=1e-5)  # every token by itself is the whole divergence


def test_what_is_left_for_the_other_tokens_is_never_nothing(one_process: Any) -> None:
    sure, other = torch.zeros(1, 9), torch.zeros(1, 9)
    sure[0, 2], other[0, 4] = 500.0, 500.0
    ids = likeliest(sure, 1)
    assert torch.isfinite(bucketed(sure, ids)).all()
    assert 100 < float(divergence(bucketed(sure, ids), bucketed(other, ids))) < float("inf")
    assert float(divergence(bucketed(sure, ids), bucketed(sure, ids))) == 0


@given(
    st.lists(st.lists(st.booleans(), min_size=2, max_size=30), min_size=1, max_size=12),
    st.integers(min_value=30, max_value=70),
)
def test_each_token_that_counts_has_its_row_at_the_place_before_it(lists: list[list[bool]], length: int) -> None:
    lists = [[False, *marks[1:]] for marks in lists]
    target, sizes = np.concatenate([np.array(marks, bool) for marks in lists]), [len(marks) for marks in lists]
    texts = Texts(np.arange(len(target)), target, np.cumsum([0, *sizes]))
    seen: dict[int, int] = {}
    for group in texts.packed(length):
        arrays, rows = texts.pack(group, length, 28, 0, has_context=False)
        for place in np.flatnonzero(rows != NO_ROW):
            assert arrays.position_ids[place + 1] == arrays.position_ids[place] + 1  # of the same text
            seen[int(rows[place])] = int(arrays.tokens[place + 1])  # tokens are numbered through
    assert seen == dict(enumerate(np.flatnonzero(target).tolist())) and len(seen) == texts.rows


def chat(tiny_model: Any) -> Any:
    return template(tiny_model(), load_tokenizer("mini"), TEMPLATES.load("chatml")(system=""))


def write_set(folder: Path) -> ShardReader:
    def talk(*turns: str) -> bytes:
        roles = ("user", "assistant")
        return json.dumps({"messages": [{"role": roles[k % 2], "content": t} for k, t in enumerate(turns)]}).encode()

    with ShardWriter(folder / "texts") as writer:
        writer.write("a", {"json": talk("one?", "red blue", "two?", "green")})
        writer.write("b", {"json": talk("<image>what?", "red"), "png": b"no picture, and never read"})
        writer.write("c", {"json": b"{"})
        writer.write("d", {"json": talk("so many words " * 20, "red")})
        writer.write("e", {"json": talk("q?", "seven " * 60)})
        writer.write("f", {"json": talk("last?", "left")})
    return ShardReader(folder / "texts")


def test_texts_are_the_first_conversations_and_only_their_answers_count(tmp_path: Path, tiny_model: Any) -> None:
    reader, tokenizer = write_set(tmp_path), load_tokenizer("mini")
    texts, passed = read_texts(reader, chat(tiny_model), count=9, length=40)
    assert len(texts) == 3 and passed == {"image": 1, "invalid_json": 1, "long_question": 1}
    first, second, third = (slice(*texts.offsets[k : k + 2]) for k in range(3))
    said = tokenizer.show(texts.tokens[first][texts.target[first]].tolist())
    assert said == "red blue<|im_end|>green<|im_end|>"  # both answers with the token that ends them, and no question
    assert second.stop - second.start == 40 and "<|im_end|>" not in tokenizer.show(
        texts.tokens[second][texts.target[second]].tolist()
    )  # cut
    fewer, _ = read_texts(reader, chat(tiny_model), count=1, length=40)
    assert len(fewer) == 1 and fewer.digest != texts.digest
    with pytest.raises(InputError, match="no text"):
        read_texts(reader, chat(tiny_model), count=9, length=2)


def test_what_is_kept_is_only_taken_for_what_it_is_of(tmp_path: Path) -> None:
    texts = Texts(np.arange(6), np.array([0, 1, 1, 0, 0, 1], bool), np.array([0, 3, 6]))
    kept = Reference(texts, np.arange(6, dtype=np.int32).reshape(3, 2), np.zeros((3, 3), np.float32))
    path, about = tmp_path / "drift" / "language.safetensors", {"baseline": "language", "top": "2"}
    assert read_reference(path, about) is None
    kept.write(path, about)
    found = read_reference(path, about)
    assert found is not None and found.texts.digest == texts.digest
    assert all((getattr(found, name) == getattr(kept, name)).all() for name in ("ids", "logprobs"))
    assert read_reference(path, about | {"top": "3"}) is None
    path.write_bytes(path.read_bytes()[:-9])
    assert read_reference(path, about) is None


def stages(**changed: Any) -> Stages:
    shared = {
        "mixture": {"weights": {"text": 1}, "sequence_length": 64, "packs_per_batch": 1},
        "steps": 1,
        "optimizer": {"lr": 1e-3},
    }
    of = {
        "language": {"train": ["decoder"]},
        "align": {"after": ["language"], "train": ["connector"]},
        "sft": {"after": ["align"], "train": ["encoder", "connector", "decoder"]},
    }
    return Stages.parse({name: {**shared, **told, **changed.get(name, {})} for name, told in of.items()})


def test_a_stage_starts_as_the_baseline_where_nothing_in_between_trained_its_decoder() -> None:
    assert starts_as(stages(), "sft", "align") and starts_as(stages(), "sft", "language")
    assert not starts_as(stages(align={"train": ["connector", "decoder"]}), "sft", "language")
    assert starts_as(stages(align={"train": ["connector", "decoder"]}), "sft", "align")
    assert not starts_as(stages(sft={"after": ["language", "align"]}), "sft", "language")
    assert not starts_as(stages(sft={"fresh": ["decoder"]}), "sft", "align")
