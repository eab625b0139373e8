"""ARCHITECTURE.md against the code: the signatures of the axes, and the arithmetic of the systems."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from megavlm.platform.registry import load_object

ROOT = Path(__file__).resolve().parents[1]

SPECS = {
    "encoder": "megavlm.megatron_mm.encoders.internvit:InternViT",
    "connector": "megavlm.megatron_mm.connectors.pixel_shuffle_mlp:PixelShuffleMLP",
    "injection": "megavlm.megatron_mm.injection.inline:Inline",
    "decoder": "megavlm.megatron_mm.decoders.qwen2:Qwen2",
    "objective": "megavlm.megatron_mm.objectives.next_token:NextToken",
}


def signature_block(first: str) -> dict[str, str]:
    """Name -> the rest, of the first indented block of ARCHITECTURE.md after a line; deeper lines go on."""
    text = (ROOT / "ARCHITECTURE.md").read_text().partition(first)[2]
    block = re.search(r"\n\n((?: {4}.+\n)+)", text)
    assert block, first
    joined = re.sub(r"\n {5,}", "  ", block[1])
    return {name: rest for name, rest in (line.split(maxsplit=1) for line in joined.splitlines())}


@pytest.mark.parametrize("axis", list(SPECS))
def test_the_written_signature_of_a_spec_is_that_of_the_code(axis):
    spec, written = load_object(SPECS[axis]), signature_block("Specs (no torch):")[axis]
    methods = {name: re.findall(r"\w+", inside) for name, inside in re.findall(r"(\w+)\(([\w, ]*)\)", written)}
    for name in re.findall(r"(?:^|   )(\w+)(?:: int| ->)", written):
        assert name in spec.model_fields or hasattr(spec, name), name
    assert "build" in methods
    for name, arguments in methods.items():
        assert list(inspect.signature(getattr(spec, name)).parameters) == ["self", *arguments], name


@pytest.mark.parametrize("name", ["FeatureMap", "VisualTokens", "PackedBatch", "Context", "BuildContext"])
def test_the_written_fields_of_a_contract_are_those_of_the_code(name):
    written = signature_block("What flows (`megatron_mm/contracts.py`):")[name]
    words = set(re.findall(r"[a-z_][a-z_0-9]*", written))
    contract = load_object(f"megavlm.megatron_mm.contracts:{name}")
    assert set(contract.__dataclass_fields__) <= words


def test_nvlm_d_at_full_size_counts_what_the_page_says():
    encoder = load_object(SPECS["encoder"])(dummy_heads=7)
    connector = load_object(SPECS["connector"])(hidden=29568)
    decoder = load_object(SPECS["decoder"])(layers=80, hidden=8192, heads=64, kv_heads=8, ffn=29568, vocab=152064)
    counts = (encoder.parameters(), connector.parameters(encoder.maps, decoder.hidden), decoder.parameters())
    summands = " + ".join(f"{count:,}" for count in counts)
    assert f"{summands} = {sum(counts):,}" in (ROOT / "ARCHITECTURE.md").read_text()
    assert connector.tokens_per_tile(encoder.maps) == 256


def test_every_gap_that_a_system_meets_is_described_and_the_other_way_round():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    systems, _, gaps = text.partition("## Where the contracts are still too narrow")
    described = set(re.findall(r"^\*\*(G\d+)\.", gaps, re.MULTILINE))
    tabled = set(re.findall(r"^\| (G\d+) ", systems, re.MULTILINE))
    assert described == tabled == set(re.findall(r"\b(G\d+)\b", systems))
