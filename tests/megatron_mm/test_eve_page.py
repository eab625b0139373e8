"""The figures and overrides of docs/eve.md are those of the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megavlm.megatron_mm.data.build import StageData
from megavlm.platform.config import load_recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "eve.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


SIZES = [line.split(" | ", 1) for line in re.findall(r"^\| (`eve.+\d) \|$", PAGE.partition("\n## ")[0], re.MULTILINE)]
STAGES = rows("The stages")
OVERRIDES = [words for _, cell in rows("Variants") for words in re.findall("`(.+?)`", cell)]


def test_there_are_figures_to_test() -> None:
    assert (len(SIZES), len(STAGES)) == (2, 9) and len(OVERRIDES) == 4


@pytest.mark.parametrize(("names", "cells"), SIZES)
def test_parameters(names: str, cells: str) -> None:
    shown = [int(cell.replace(",", "")) for cell in cells.split("|")]
    for name in re.findall("`(.+?)`", names):
        counts = load_recipe(name).section("model").parameter_counts()
        assert shown == [counts[axis] for axis in ("encoder", "connector", "injection", "decoder", "exported")]


@pytest.mark.parametrize("cells", STAGES, ids=lambda cells: cells[0])
def test_stages(cells: list[str]) -> None:
    name, stage = re.findall("`(.+?)`", cells[0])
    (samples, batch), (rate, warmup), (side, positions) = (cell.split(", ") for cell in cells[2:])
    spec = StageData.of(load_recipe(name), stage)
    of, by = spec.stage, spec.stage.optimizer
    assert (of.mixture.global_batch.size, of.mixture.sequence_length) == (number(batch), number(positions))
    assert (by.lr, spec.model.tiling.tile, spec.model.encoder.image_size) == (float(rate), int(side), int(side))
    assert by.warmup_steps / of.steps == pytest.approx(float(warmup), rel=0.01)
    drawn, unit = of.steps * of.mixture.global_batch.size, {"M": 1e6, "k": 1e3}[samples[-1]]
    assert drawn == pytest.approx(float(samples[:-1]) * unit, rel=1e-3)


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize("words", OVERRIDES)
def test_every_override_resolves(words: str) -> None:
    assert load_recipe("eve-7b", re.split(r" (?=(?:model|stages|data)\.)", words)).sections
