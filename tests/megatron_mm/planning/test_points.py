"""Published points: each source's TFLOP/s from its tokens, by the convention that it counts in."""

from __future__ import annotations

import pytest

from megavlm.megatron_mm.planning.points import outside, points, sources

INCONSISTENT = "Llama3-70B FP8 26.04.01"


@pytest.mark.parametrize("row", [row for row in points() if row.claimed], ids=lambda row: row.name)
def test_tokens_and_tflops_agree_by_the_sources_convention(row):
    """Within what rounding to three digits leaves; one published row contradicts itself by 2 %."""
    off = abs(row.counted / row.claimed - 1)
    assert (0.02 < off < 0.03) if row.name == INCONSISTENT else off < 0.005


def test_every_point_is_there_or_says_why_not():
    told = {row.point for row in points()} | {int(name.partition(":")[0]) for name in outside()}
    assert told == set(range(1, 19))
    assert {row.source for row in points()} <= set(sources())


@pytest.mark.parametrize(
    ("name", "giga"),
    [("Llama3-8B FP8 25.11", 51.5), ("Llama3-70B FP8 25.11", 449.2), ("Llama3.1-405B FP8 25.11", 2524.0),
     ("Llama3-8B FP8", 57.9), ("Llama3-70B FP8", 481.4)],
)  # fmt: skip
def test_flops_of_a_token_are_the_published_quotients(name, giga):
    """TFLOP/s over tokens/s of Megatron-Bridge's rows (causal attention) and of NeMo 24.12's (the whole square)."""
    (row,) = (row for row in points() if row.name == name)
    assert row.flops_per_token / 1e9 == pytest.approx(giga, rel=2e-3)


def test_replicas_and_micro_batches_divide_the_batch():
    for row in points():
        assert row.gpus == row.dp * row.parallel.split
        assert row.batch % (row.dp * row.micro) == 0
