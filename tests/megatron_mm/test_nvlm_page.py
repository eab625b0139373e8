"""The figures of docs/nvlm.md are those of the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megavlm.platform.config import load_recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "nvlm.md").read_text()
SIZES = re.findall(r"^\| `(nvlm-\S+)` \| ([\d, |]+) \|$", PAGE, re.MULTILINE)


def test_there_are_figures_to_test() -> None:
    assert len(SIZES) == 6


@pytest.mark.parametrize(("name", "cells"), SIZES)
def test_parameters(name: str, cells: str) -> None:
    counts = load_recipe(name).section("model").parameter_counts()
    shown = [int(cell.replace(",", "")) for cell in cells.split("|")]
    assert shown == [counts[axis] for axis in ("encoder", "connector", "injection", "decoder", "exported")]
