"""Weight maps: wild cards, prefixes, sums, and every format of the registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megavlm.megatron_mm.conversion import FORMATS
from megavlm.megatron_mm.conversion.llama import LLAMA
from megavlm.megatron_mm.conversion.qwen2 import QWEN2
from megavlm.megatron_mm.conversion.rules import Rule, WeightMap, filled, matched
from megavlm.megatron_mm.conversion.transforms import Same
from megavlm.megatron_mm.parts import OWNERS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "conversion.md"


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("a.{n}.b.{n}", "a.0.b.12", ("0", "12")),
        ("a.{n}", "a.01", None),
        ("a.{n}", "a.٣", None),  # a digit, but none of ours
        ("a.{n}", "axe1", None),
        ("a.{n}.w", "a.1.w.w", None),
        ("t.{any}", "t.x.y_z.0", ("x.y_z.0",)),
        ("t.{any}", "t.", None),
        ("t.{any}", "t../../etc", None),
    ],
)
def test_wild_cards(pattern: str, name: str, found: tuple[str, ...] | None) -> None:
    assert matched(pattern, name) == found
    assert found is None or filled(pattern, found) == name


def test_a_rule_fills_in_the_layer() -> None:
    names, _ = LLAMA.made_of("decoder.layers.7.self_attention.linear_qkv.weight")
    assert names == tuple(f"model.layers.7.self_attn.{part}_proj.weight" for part in "qkv")
    assert LLAMA.made_of("decoder.layers.7.self_attention.linear_qkv.bias") is None
    assert QWEN2.made_of("decoder.layers.7.self_attention.linear_qkv.bias") is not None


def test_under_a_prefix() -> None:
    nested = LLAMA.under("language_model.")
    names, _ = nested.made_of("decoder.final_layernorm.weight")
    assert names == ("language_model.model.norm.weight",)
    assert nested.why_ignored("language_model.lm_head.weight") and not nested.why_ignored("lm_head.weight")
    assert nested.names("language_model.model.layers.3.mlp.up_proj.weight")


def test_in_a_sum_the_first_rule_holds() -> None:
    table = WeightMap([Rule("a", "x")], {"b": "first"}) + WeightMap([Rule("a", "y"), Rule("c", "z")], {"b": "second"})
    assert [table.made_of(name)[0] for name in "ac"] == [("x",), ("z",)]
    assert isinstance(table.made_of("a")[1], Same) and table.why_ignored("b") == "first"


@pytest.mark.parametrize("name", list(FORMATS))
def test_formats(name: str) -> None:
    """Each is called what the registry calls it, and a rule has as many wild cards on either side."""
    fmt = FORMATS.load(name)()
    assert fmt.name == name and fmt.maps and set(fmt.maps) <= set(OWNERS)
    for table in fmt.maps.values():
        for rule in table.rules:
            assert {len(re.findall("{n}|{any}", text)) for text in (rule.ours, *rule.published)} in ({0}, {1}, {2})


def test_every_format_is_in_the_docs() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(), re.MULTILINE)) >= set(FORMATS)
