"""First weights: the rule they follow. That no layout changes them is shown in test_parallel.py."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.model import build_model


@pytest.fixture
def drawn(
    one_process: BuildContext, tiny_model: Callable[..., ModelConfig]
) -> Callable[[int], dict[str, torch.Tensor]]:
    def draw(seed: int) -> dict[str, torch.Tensor]:
        model = build_model(tiny_model(decoder={"layers": 4, "hidden": 64}), one_process)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(float("nan"))
        backend.initialise(model, seed)
        return {re.sub(r"^(tower|stages\.0)\.", "", name): p for name, p in model.named_parameters()}

    return draw


def test_every_parameter_is_drawn_and_the_seed_decides(drawn: Callable[[int], dict[str, torch.Tensor]]) -> None:
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(p.isfinite().all() for p in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)
    moved = {name for name in first if not torch.equal(first[name], other[name])}
    assert moved == {name for name, p in first.items() if p.dim() > 1 or name.endswith("class_token")}


def test_layers_and_halves_are_drawn_apart(drawn: Callable[[int], dict[str, torch.Tensor]]) -> None:
    w = drawn(1)
    fc1 = [w[f"decoder.decoder.layers.{layer}.mlp.linear_fc1.weight"] for layer in range(2)]
    assert not torch.equal(*fc1)
    gate, up = fc1[0].chunk(2)
    assert not torch.equal(gate, up)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("decoder.decoder.layers.3.self_attention.linear_qkv.weight", 1 / 8),
        ("decoder.decoder.layers.3.self_attention.linear_proj.weight", 1 / 8 / math.sqrt(8)),
        ("decoder.decoder.layers.0.mlp.linear_fc2.weight", 1 / math.sqrt(48) / math.sqrt(8)),
        ("decoder.embedding.word_embeddings.weight", 0.02),
        ("decoder.output_layer.weight", 0.02),
        ("encoder.embedding.patches.weight", 1 / math.sqrt(3 * 49)),
        ("encoder.embedding.positions", 0.02),
        ("connector.mlp.linear_fc1.weight", 1 / math.sqrt(128)),
    ],
)
def test_deviations(drawn: Callable[[int], dict[str, torch.Tensor]], name: str, deviation: float) -> None:
    assert drawn(1)[name].std().item() == pytest.approx(deviation, rel=0.1)


def test_vectors(drawn: Callable[[int], dict[str, torch.Tensor]]) -> None:
    for name, p in drawn(1).items():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        elif name.endswith("bda.scale"):
            assert torch.allclose(p, torch.tensor(0.1)), name
