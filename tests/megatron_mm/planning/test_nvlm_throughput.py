"""NVLM's published throughput (arXiv 2409.11402, table 3) against the formulas on its recipes."""

from __future__ import annotations

import pytest

from megavlm.megatron_mm.planning.nvlm import PUBLISHED, seconds, staged, unpadded


def test_x_is_as_much_faster_than_d_as_published():
    """50.6 : 28.8 samples/s within 5 %, each in the sequence that the table states."""
    assert seconds("d", unpadded("d")) / seconds("x") == pytest.approx(8.885 / 5.063, rel=0.05)


def test_tiles_beside_the_sequence_save_time():
    x, h, d = (seconds(variant) for variant in "xhd")
    assert x < h < d


@pytest.mark.xfail(strict=True, reason="H is published slower than its operations, traffic and layout make it")
def test_h_is_as_much_slower_than_x_as_published():
    """50.6 : 36.2 samples/s: formulas say 45, and where H's time goes is not published."""
    assert seconds("h") / seconds("x") == pytest.approx(7.071 / 5.063, rel=0.05)


def test_h_and_d_take_as_long_as_published_where_the_first_of_four_stages_encodes():
    """Absolute times within what the planner's times err by elsewhere, and their ratio within 6 %."""
    h, d = staged("h", 4), staged("d", 4)
    assert h == pytest.approx(PUBLISHED["h"], rel=0.2) and d == pytest.approx(PUBLISHED["d"], rel=0.2)
    assert h / d == pytest.approx(7.071 / 8.885, rel=0.06)


def test_the_published_code_was_slower_than_the_formulas_of_our_engine():
    """It hides no communication, and encodes where others wait."""
    assert all(seconds(variant) < published for variant, published in PUBLISHED.items())
