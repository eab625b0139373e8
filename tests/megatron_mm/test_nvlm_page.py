"""The figures of docs/nvlm.md are those of the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megavlm.megatron_mm.data.build import StageData
from megavlm.platform.config import load_recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "nvlm.md").read_text()
SIZES = re.findall(r"^\| `(nvlm-\S+)` \| ([\d, |]+) \|$", PAGE, re.MULTILINE)
MACHINES = re.findall(r"^\| ([DXH]) (72B|34B|7B).*?, (pretraining|SFT) \| (.+) \|$", PAGE, re.MULTILINE)
STAGES = {"pretraining": "pretrain", "SFT": "sft"}


def test_there_are_figures_to_test() -> None:
    assert len(SIZES) == 6 and len(MACHINES) == 13


@pytest.mark.parametrize(("name", "cells"), SIZES)
def test_parameters(name: str, cells: str) -> None:
    counts = load_recipe(name).section("model").parameter_counts()
    shown = [int(cell.replace(",", "")) for cell in cells.split("|")]
    assert shown == [counts[axis] for axis in ("encoder", "connector", "injection", "decoder", "exported")]


@pytest.mark.parametrize(("kind", "size", "stage", "cells"), MACHINES)
def test_memory_and_samples_of_a_gpu(kind: str, size: str, stage: str, cells: str) -> None:
    spec = StageData.of(load_recipe(f"nvlm-{kind}-{size}".lower()), STAGES[stage])
    batch, tokens, *machines = [cell.strip() for cell in cells.split("|")]
    of, length = spec.stage.mixture.global_batch.size, spec.stage.mixture.sequence_length
    assert (int(batch.replace(",", "")), int(tokens.replace(",", ""))) == (of, of * length)
    for gpus, cell in zip((8, 32, 128), machines, strict=True):
        if gpus < spec.stage.parallel.split:
            assert "needs 32" in cell
            continue
        replicas = gpus // spec.stage.parallel.split
        memory, _, said = re.match(r"(\d+)(, |: )(.+)", cell).groups()  # type: ignore[union-attr]
        assert int(memory) == round(gibibytes(spec, replicas))
        assert "no" in said if int(memory) > 75 else int(said.replace(",", "")) == of // replicas


def gibibytes(spec: StageData, replicas: int) -> float:
    """bf16 weights, fp32 gradients and 12 bytes of optimizer of what is trained; the tower whole on pipeline stages."""
    counts, parallel = spec.model.parameter_counts(), spec.stage.parallel
    share = dict.fromkeys(("encoder", "connector"), parallel.tp)
    share |= dict.fromkeys(("injection", "decoder"), parallel.tp * parallel.pp)
    weights = sum(counts[axis] / of for axis, of in share.items())
    trained = sum(counts[axis] / share[axis] for axis in spec.stage.train)
    return (2 * weights + (4 + 12 / replicas) * trained) / 2**30
