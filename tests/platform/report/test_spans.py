"""Boxes along the time as a picture."""

from __future__ import annotations

import re

import pytest

from megavlm.platform.report import Report, Span
from megavlm.platform.report.spans import svg

ROWS = {
    "first <1>": [Span(0, 2, "forward", "0"), Span(2, 2.01, "forward", "hidden"), Span(3, 4, "backward", "9", 1.0)],
    "second": [Span(2, 3, "forward", "0")],
}


def test_rows_series_and_labels_that_fit_are_told() -> None:
    drawn = svg(ROWS, "seconds")
    for told in ("first &lt;1&gt;", "second", "seconds", "forward", "backward"):
        assert drawn.count(f">{told}<") == 1, told
    assert ">9<" in drawn and ">hidden<" not in drawn


def test_a_box_is_as_long_as_it_lasts() -> None:
    """Widths of the first row's two full boxes, read from the paths: 2 to 1."""
    drawn = svg({"row": [Span(0, 2, "forward"), Span(3, 4, "forward")]}, "")
    boxes = [re.findall(r"[\d.]+", path) for path in re.findall(r'<path d="(M [^"]+z\s*)" clip-path', drawn)]
    widths = [max(xs) - min(xs) for box in boxes if (xs := [float(x) for x in box[::2]])]
    assert max(widths) == pytest.approx(2 * sorted(widths)[-2], rel=1e-4)


def test_without_rows_it_is_drawn_all_the_same_and_a_report_holds_several() -> None:
    report = Report("t")
    report.spans("none", {})
    report.spans("some", ROWS, "s")
    html = report.html()
    assert html.count("<svg") == 2
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
