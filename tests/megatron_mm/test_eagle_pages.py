"""The figures and overrides of docs/eagle.md and docs/mmfuser.md are those of the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megavlm.platform.config import load_recipe

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("eagle", "mmfuser")}
BOTH = "".join(PAGES.values())
SIZES = re.findall(r"^\| `(\S+)` \| ([\d, |]+) \|$", BOTH, re.MULTILINE)
FUSIONS = re.findall(r"^\| [^|]+ \| ([^|]*) ?\| ([\d,]+) \| ([\d.,]+)M \| (\d+)M \|$", PAGES["eagle"], re.MULTILINE)
OVERRIDES = [
    (page, words)
    for page, text in PAGES.items()
    for words in re.findall(r"`((?:model|stages|data)\.[\w.-]+=[^`]+)`", text)
]
UNUSED_HEAD = 3072 + 3072 + 3072 * 1024  # of the published ConvNeXt, which table 4 counts
FULL = {"eagle": "eagle-x5-7b-prealign", "mmfuser": "mmfuser-7b"}


def test_there_are_figures_to_test() -> None:
    assert (len(SIZES), len(FUSIONS)) == (8, 5) and len(OVERRIDES) >= 14


@pytest.mark.parametrize(("name", "cells"), SIZES)
def test_parameters(name: str, cells: str) -> None:
    counts = load_recipe(name).section("model").parameter_counts()
    shown = [int(cell.replace(",", "")) for cell in cells.split("|")]
    assert shown == [counts[axis] for axis in ("encoder", "connector", "decoder", "exported")]


@pytest.mark.parametrize(("cell", "tokens", "millions", "published"), FUSIONS)
def test_fusions_of_two_experts(cell: str, tokens: str, millions: str, published: str) -> None:
    words = [word for text in re.findall(r"`(model\.[^`]+)`", cell) for word in split(text)]
    use = [] if "without `use`" in cell else ["model.encoder.use=[clip, convnext]"]
    model = load_recipe("eagle-x5-7b", [*words, *use]).section("model")
    counts = model.parameter_counts()
    assert model.tokens_per_tile == int(tokens.replace(",", ""))
    here = (counts["encoder"] + counts["connector"] + UNUSED_HEAD) / 1e6
    assert here == pytest.approx(float(millions.replace(",", "")), abs=0.05)
    assert (abs(here - int(published)) <= 1) != ("windows" in cell or "deformable" in cell)


def split(words: str) -> list[str]:
    """Overrides one after another, in which spaces stand inside brackets alone."""
    return re.split(r" (?=(?:model|stages|data)\.)", words)


@pytest.mark.parametrize(("page", "words"), OVERRIDES)
def test_every_override_resolves(page: str, words: str) -> None:
    assert load_recipe(FULL[page], split(words)).sections


@pytest.mark.parametrize("name", ["eagle-x5-7b", "mmfuser-7b"])
def test_what_the_architecture_says_of_them(name: str) -> None:
    page, counts = (DOCS.parent / "ARCHITECTURE.md").read_text(), load_recipe(name).section("model").parameter_counts()
    summed = " + ".join(f"{counts[axis]:,}" for axis in ("encoder", "connector", "decoder"))
    told = {"eagle-x5-7b": f"{summed} = {counts['total']:,}",
            "mmfuser-7b": f"{counts['connector']:,} and {counts['decoder']:,}"}  # fmt: skip
    assert told[name] in page
