"""Estimates with their intervals as a picture."""

from __future__ import annotations

from megavlm.platform.report.dots import Dot, Dots


def test_every_row_mark_and_limit_is_named_once() -> None:
    dots = {"mmlu": Dot(1.0, 0.5, 1.5, 2.0), "average <4>": Dot(-1.0, -3.0, 1.0)}
    svg = Dots("t", dots, "points lost", {"no change": 0.0}).svg()
    for told in ("mmlu", "average &lt;4&gt;", "points lost", "no change", "allowed"):
        assert svg.count(f">{told}<") == 1


def test_without_limits_none_is_named_and_without_rows_it_is_drawn_all_the_same() -> None:
    assert ">allowed<" not in Dots("t", {"a": Dot(0.0, -1.0, 1.0)}).svg()
    assert "<svg" in Dots("t", {}).svg()
