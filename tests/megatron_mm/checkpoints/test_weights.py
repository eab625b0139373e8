"""Weights out of several checkpoints: each from the last one that holds it, but for what begins anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.weights import fill
from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.errors import InputError

WIDER = {"name": "pixel_shuffle_mlp", "hidden": 64}


@pytest.fixture
def drawn(one_process: Any, tiny_model: Callable[..., ModelConfig]) -> Callable[..., VisionLanguageModel]:
    """`drawn(seed, connector=...)`: a model with weights of that seed."""

    def make(seed: int, **changes: Any) -> VisionLanguageModel:
        model = build_model(tiny_model().changed(changes, "model"), backend.build_context(Parallel()))
        backend.initialise(model, seed)
        return model

    return make


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[VisionLanguageModel, str], Path]:
    def make(model: VisionLanguageModel, name: str) -> Path:
        (tmp_path / name).mkdir()
        dist_checkpointing.save(model.sharded_state_dict(), str(tmp_path / name))
        return tmp_path / name

    return make


def weights(model: VisionLanguageModel, axis: str) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.axis(axis)}


def same(model: VisionLanguageModel, other: VisionLanguageModel, axis: str) -> bool:
    found, wanted = weights(model, axis), weights(other, axis)
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


def test_each_weight_is_the_last_one_s_that_has_it_in_this_shape(drawn, saved) -> None:
    one, other, model = drawn(1), drawn(2, connector=WIDER), drawn(3)
    fill(model, saved(one, "one"), saved(other, "other"))
    # the norm before the connector's layers is as wide in both
    assert same(model, other, "encoder") and same(model, other, "decoder")
    assert torch.equal(model.tower.connector.mlp.linear_fc1.weight, one.tower.connector.mlp.linear_fc1.weight)


def test_what_begins_anew_is_left_as_it_is(drawn, saved) -> None:
    one, model, untouched = drawn(1), drawn(3, connector=WIDER), drawn(3, connector=WIDER)
    fill(model, saved(one, "one"), skip=lambda axis, _: axis == "connector")
    assert same(model, one, "encoder") and same(model, one, "decoder") and same(model, untouched, "connector")


def test_a_weight_that_nobody_has_in_this_shape(drawn, saved) -> None:
    folder = saved(drawn(1), "one")
    with pytest.raises(InputError, match=r"connector.* is \[.*64.*\] here and \[.*48.*\] there") as told:
        fill(drawn(3, connector=WIDER), folder)
    assert "fresh" in (told.value.fix or "")


def test_a_weight_that_nobody_has(drawn, saved) -> None:
    folder = saved(drawn(1), "one")
    biased = {"name": "internvit", "qkv_bias": True}
    with pytest.raises(InputError, match="no checkpoint has a weight 'encoder"):
        fill(drawn(3, encoder=biased), folder)


def test_a_table_may_be_padded_for_another_layout_and_nothing_more(drawn, saved) -> None:
    one, decoder = drawn(1), {"name": "qwen2", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48}
    shorter, model = saved(one, "one"), drawn(3, decoder={**decoder, "vocab": 95})
    fill(model, shorter)  # 96 rows: 95 and one that makes them divide by 2
    tables = (m.stages[0].decoder.embedding.word_embeddings.weight for m in (model, one))
    assert torch.equal(*(table[:95] for table in tables))
    with pytest.raises(InputError, match=r"\[97, 32\] here and \[96, 32\] there"):
        fill(drawn(3, decoder={**decoder, "vocab": 97}), shorter)
    with pytest.raises(InputError, match=r"\[20, 32\] here and \[96, 32\] there"):
        fill(drawn(3, decoder={**decoder, "vocab": 20}), shorter)
