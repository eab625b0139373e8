"""Histograms, densities, stacked bars, pictures and cases: what is given is what is drawn."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from megavlm.platform.report import Case, Density, Histogram, Report
from megavlm.platform.report.charts import lines, short, stacked

EVIL = "<script>alert('x')</script>\"><img src=https://example.com/a.png>"


def png(colour: int = 9) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), colour, np.uint8)).save(out, "PNG")
    return out.getvalue()


def histogram(**options) -> Histogram:
    series = {"all": [5, 0, 3], "kept": [2, 0, 3]}
    given = {
        "edges": [1, 2, 4, 8],
        "series": series,
        "x_label": "px",
        "marks": {"dropped below 2": 2.0},
        "note": "8 samples",
    }
    return Histogram("Sides", **(given | options))


def tops(svg: str, colour: int) -> list[float]:
    """Heights at which a filled series' steps lie, from the axis up, in points."""
    path = re.search(rf'<path d="([^"]*)"[^>]*style="fill: var\(--series-{colour}\); (?:fill-)?opacity', svg)[1]
    ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
    return [max(ys) - y for y in ys]


def test_steps_are_as_high_as_the_counts():
    for colour, counts in ((1, [5, 0, 3]), (2, [2, 0, 3])):
        heights = tops(histogram().svg(), colour)
        unit = max(heights) / max(counts)
        assert {round(height / unit, 3) for height in heights} == set(counts)


@pytest.mark.parametrize("value", [0.5, 3.0, 90.0])
def test_a_limit_is_drawn_inside_the_chart_wherever_it_lies(value):
    svg = histogram(marks={"limit": value}, log_x=True).svg()
    width = float(re.search(r'viewBox="0 0 (\S+) ', svg)[1])
    drawn = re.search(r'<path d="M (\S+) (\S+) \nL (\S+) (\S+) \n"[^>]*stroke-dasharray[^>]*var\(--series-4\)', svg)
    assert drawn and drawn[1] == drawn[3] and 0 < float(drawn[1]) < width
    assert ">limit</text>" in svg


def test_signs_of_formulas_are_letters_in_names():
    assert ">a $x^ b$</text>" in histogram(marks={"a $x^ b$": 2.0}).svg()


def test_a_density_draws_the_cells_that_hold_something():
    svg = Density("d", [1, 2, 4], [1, 2, 4, 8], [[9, 0], [0, 1], [4, 0]], lines={"limit": [(1, 2), (4, 2)]}).svg()
    opacities = [float(found) for found in re.findall(r"fill: var\(--series-1\)[^\"]*fill-opacity: ([\d.]+)", svg)]
    assert len(opacities) == 3 and max(opacities) == 0.95 and min(opacities) > 0.08
    assert opacities[0] > opacities[2] > opacities[1]
    assert ">limit</text>" in svg


def test_an_empty_density_and_an_empty_histogram_are_drawn():
    assert "<svg" in Density("d", [1, 2], [1, 2], [[0]]).svg()
    assert "<svg" in histogram(series={"all": [0, 0, 0]}, marks={}).svg()


def test_stacked_bars_say_both_parts_or_the_sum_of_more():
    two = stacked({"ingest": {"kept": 1200, "dropped": 30}, "select": {"kept": 7, "dropped": 0}}, "samples")
    assert ">1,200 kept, 30 dropped</text>" in two and ">7 kept</text>" in two
    three = stacked({"a": {"x": 1, "y": 2, "z": 3}}, "rows")
    assert ">6</text>" in three and stacked({}, "rows").startswith("<svg")


def test_levels_and_two_logarithmic_axes():
    svg = lines({"sizes": [(1, 5000), (100, 10)]}, "rank", "images", log_y=True, log_x=True, marks={"n": 300.0})
    assert ">n</text>" in svg and ">1,000</text>" in svg and ">100</text>" in svg
    close = lines({"sizes": [(5, 5)]}, "rank", "images", log_y=True, log_x=True)
    assert "<svg" in close


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (800, "800"), (2000, "2,000"), (12e3, "12k"), (3e6, "3M"), (2e9, "2G")]
)
def test_numbers_of_an_axis(value, text):
    assert short(value) == text


@pytest.fixture
def report():
    out = Report("Panels")
    out.section("Small charts")
    out.panels("All", [histogram(), Density("Both", [1, 2], [1, 2], [[3]])])
    out.picture("Mosaic", png(), "nearest first", 300)
    out.cases(
        "Pairs",
        [Case([(png(1), "kept"), (b"zip", "lost")], [("why", "equal"), ("text", [("a ", False), ("b", True)])])],
    )
    out.stacked_bars("Stages", {"a": {"kept": 2, "dropped": 1}}, "samples")
    return out


def test_blocks_say_what_they_show(report):
    html = report.html()
    assert 'aria-label="Sides. 8 samples"' in html and 'alt="Mosaic. nearest first"' in html
    assert "a <mark>b</mark>" in html and "no picture" in html and 'alt="kept"' in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) and html.count("<svg") == 3


def test_nothing_to_show_says_so():
    out = Report("x")
    out.panels("p", [])
    out.cases("c", [])
    out.picture("m", b"", "no picture can be had", 10)
    assert out.html().count(">none<") == 2 and out.html().count("no picture</span>") == 1


def test_all_text_of_them_is_escaped():
    out = Report("x")
    out.panels(EVIL, [Histogram(EVIL, [1, 2], {EVIL: [1], "b": [1]}, EVIL, {EVIL: 1}, note=EVIL)])
    out.picture(EVIL, png(), EVIL, 10)
    out.cases(EVIL, [Case([(png(), EVIL)], [(EVIL, [(EVIL, True), (EVIL, False)])])])
    out.stacked_bars(EVIL, {EVIL: {EVIL: 1}}, EVIL)
    html = out.html()
    assert (
        "<script" not in html
        and html.count("<img") == 2
        and "src=https" not in html.replace("&gt;&lt;img src=https", "")
    )


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("dark", 1100), ("light", 390)])
def test_they_fit_into_a_window_of_any_width(report, tmp_path, open_in_browser, scheme, width):
    facts = open_in_browser(report.write(tmp_path / "report.html"), width=width, scheme=scheme)
    assert facts.overflow == 0 and facts.console == [] and facts.outside == []
    assert not any(picture.broken for picture in facts.pictures) and all(w > 200 for w, _ in facts.charts)
