from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from megavlm.platform.cli import main
from megavlm.platform.report import REPORT_SECTIONS, Report
from megavlm.platform.report.format import cell
from megavlm.platform.report.sections import add_run
from megavlm.platform.runs import RunFolder

EVIL = "<script>alert('x')</script>\"><img src=https://example.com/a.png>"


def picture(kind: str, colour: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), colour, np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def report():
    out = Report("Demo", "what came of it")
    out.figures({"images": 12345, "recall": 0.98765432})
    out.section("Curation", "From raw pairs to shards.")
    out.table([{"stage": "filter", "kept": 10, "dropped": None}], ["stage", "kept", "dropped"], title="Funnel")
    out.bar_chart("Reasons", {"too_small": 3, "near_duplicate": 7}, "samples")
    out.gallery("Pictures", [(picture("JPEG", 200), "first"), (picture("PNG", 90), "second"), (b"zip", "broken one")])
    out.section("Training")
    points = [(step, 3.0 / step) for step in range(1, 20)]
    out.line_chart("Loss", {"pretrain": points, "sft": [(1, 2.0), (2, float("nan")), (3, 1.0)]}, "step", "loss")
    out.bar_chart("Accuracy", {"text": {"before": 0.8, "after": 0.79}}, marks={"chance": 0.2})
    out.verdict("text accuracy kept", True)
    out.text("One.\n\nTwo.")
    return out


class Links(HTMLParser):
    """Everything an HTML page could load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in {"src", "href", "xlink:href", "data", "action"}]
        self.ids += [value for name, value in attrs if name == "id"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def links(html: str) -> Links:
    out = Links()
    out.feed(html)
    return out


def test_one_file_that_asks_for_nothing(report, tmp_path):
    html = report.write(tmp_path / "deep" / "report.html").read_text()
    seen = links(html)
    assert seen.targets and all(target.startswith(("data:", "#")) for target in seen.targets)
    assert not {"script", "iframe", "object", "embed"} & set(seen.tags) and not seen.handlers
    assert "@import" not in html and not re.findall(r"url\((?!#)", html)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_ids_are_unique_and_every_inner_link_leads_somewhere(report):
    seen = links(report.html())
    assert len(seen.ids) == len(set(seen.ids))
    assert {target[1:] for target in seen.targets if target.startswith("#")} <= set(seen.ids)


def test_pictures_are_copied_byte_for_byte(report):
    data = [base64.b64decode(found) for found in re.findall(r'src="data:image/\w+;base64,([^"]+)"', report.html())]
    assert data == [picture("JPEG", 200), picture("PNG", 90)]
    assert "broken one" in report.html()


def test_all_text_is_escaped():
    out = Report(EVIL, EVIL)
    out.section(EVIL, EVIL)
    out.text(EVIL)
    out.verdict(EVIL, None)
    out.figures({EVIL: EVIL})
    out.table([[EVIL]], [EVIL], title=EVIL)
    out.gallery(EVIL, [(picture("PNG", 1), EVIL)])
    out.bar_chart(EVIL, {EVIL: 1.0}, EVIL)
    out.line_chart(EVIL, {EVIL: [(1, 1)], "b": [(1, 2)]}, EVIL, EVIL)
    seen = links(out.html())
    assert "script" not in seen.tags and seen.tags.count("img") == 1
    assert not any("example.com" in target for target in seen.targets)


def test_the_same_content_gives_the_same_charts(report):
    charts = re.findall(r"<svg.*?</svg>", report.html(), flags=re.DOTALL)
    assert len(charts) == 3 and charts == re.findall(r"<svg.*?</svg>", report.html(), flags=re.DOTALL)
    assert all(re.search(r"#0[0-9]0", chart) is None for chart in charts)  # no stand-in colour is left
    assert all("var(--series-1)" in chart and "currentColor" in chart for chart in charts)


def test_empty_blocks_say_so():
    out = Report("x")
    out.section("Nothing")
    out.table([], ["a"])
    out.gallery("No pictures", [])
    out.line_chart("No lines", {})
    out.bar_chart("No bars", {})
    assert out.html().count(">none<") == 2 and out.html().count("<svg") == 2


def test_a_row_of_the_wrong_length_is_an_error():
    with pytest.raises(ValueError, match="2 values under 1 columns"):
        Report("x").table([[1, 2]], ["a"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.98765, "0.9877"),
        (18234.5, "18,234"),
        (1e-5, "1e-05"),
        ("a", "a"),
    ],
)
def test_how_values_look(value, text):
    assert cell(value).text == text


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("light", 390)])
def test_in_a_browser(report, tmp_path, open_in_browser, scheme, width):
    report.text(EVIL)
    facts = open_in_browser(report.write(tmp_path / "report.html"), width=width, scheme=scheme)
    assert facts.title == "Demo" and "From raw pairs to shards." in facts.text and "PASSED" in facts.text
    assert [shown.alt for shown in facts.pictures] == ["first", "second"]
    assert all(shown.natural == (60, 40) and min(shown.shown) > 50 and not shown.broken for shown in facts.pictures)
    assert len(facts.charts) == 3 and all(w > 300 and h > 60 for w, h in facts.charts)
    assert facts.console == [] and facts.outside == [] and facts.overflow == 0


@pytest.mark.browser
def test_the_browser_fixture_sees_what_is_wrong(tmp_path, open_in_browser):
    page = tmp_path / "bad.html"
    page.write_text(
        '<title>t</title><img src="data:image/png;base64,AAAA"><img src="missing.png"><script>boom()</script>'
    )
    facts = open_in_browser(page)
    assert [shown.broken for shown in facts.pictures] == [True, True]
    assert any("boom" in line for line in facts.console)
    assert [asked.rpartition("/")[2] for asked in facts.outside] == ["missing.png"]


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(
        tmp_path / "mini", {"name": "mini", "seed": 7}, {"seed": "command line"}, ["megavlm", "train"]
    )


def test_a_runs_own_section(run):
    out = Report("mini")
    add_run(run, out)
    html = out.html()
    assert "<td>seed</td>" in html and "command line" in html and "megavlm train" in html


def test_the_verb_writes_into_the_run_folder(run, capsys):
    assert main(["report", str(run.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"report": str(run.path("report.html")), "sections": [f"Run {run.name}"]}
    assert run.path("report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("name", list(REPORT_SECTIONS))
def test_every_section_adds_nothing_to_an_empty_run(run, name):
    out = Report("mini")
    REPORT_SECTIONS.load(name)(run, out)
    assert [section.title for section in out.sections if section.title] == (
        [f"Run {run.name}"] if name == "run" else []
    )
