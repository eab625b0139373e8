"""NVLM's published throughput (arXiv 2409.11402, table 3) against the formulas on its recipes."""

from __future__ import annotations

import pytest

from megavlm.megatron_mm.planning.nvlm import PUBLISHED, seconds


def test_x_is_as_much_faster_than_d_as_published():
    """50.6 : 28.8 samples/s within 5 %, D in sequences of 3200 as its script has them."""
    assert seconds("d") / seconds("x") == pytest.approx(8.885 / 5.063, rel=0.05)


def test_tiles_beside_the_sequence_save_time():
    x, h, d = (seconds(variant) for variant in "xhd")
    assert x < h < d


@pytest.mark.xfail(strict=True, reason="H is published slower than its operations, traffic and layout make it")
def test_h_is_as_much_slower_than_x_as_published():
    """50.6 : 36.2 samples/s: formulas say 46, and where H's time goes is not published."""
    assert seconds("h") / seconds("x") == pytest.approx(7.071 / 5.063, rel=0.05)


def test_the_published_code_was_slower_than_the_formulas_and_never_twice():
    """It overlaps no communication, and encodes on every group of eight."""
    for variant, published in PUBLISHED.items():
        assert 0.5 * published < seconds(variant) < published
