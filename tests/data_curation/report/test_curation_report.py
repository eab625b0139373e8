"""The whole report of runs over images: what it says, what it needs, and what it does when things are missing."""

from __future__ import annotations

import re
import shutil

import pyarrow.parquet as pq
import pytest
import yaml

from megavlm.data_curation.report import add_sections
from megavlm.data_curation.report.funnel import problems
from megavlm.data_curation.stages import STAGES
from megavlm.platform.cli import main
from megavlm.platform.report import Report
from megavlm.platform.runs import RunFolder

SECTIONS = ["Curation", "Distributions", "Clusters", "Duplicates", "Dropped"]


def sections(html: str) -> list[str]:
    return re.findall(r"<h2>([^<]*)</h2>", html)


def test_it_says_what_was_dropped_why_and_by_which_method(html):
    assert sections(html) == SECTIONS
    for words in ("filter: too_small", "filter: empty", "ingest: failed_to_download", "deduplicate: duplicate_hash"):
        assert words in html
    assert "The counts add up: 45 in = " in html
    assert "far_from_centroid" in html and "pixels at 8 px. Weights: none" in html


def test_the_verdict_on_the_counts_sees_what_is_lost():
    lines = [
        {"stage": "ingest", "in": 10, "kept": 8, "dropped": {"empty": 2}},
        {"stage": "embed", "in": 8, "kept": 8, "dropped": {}},
        {"stage": "select", "in": 8, "kept": 5, "dropped": {"far_from_centroid": 3}},
        {"stage": "export", "in": 5, "kept": 5, "dropped": {}},
    ]
    assert problems(lines, {"ingest", "select"}) == []
    lines[2]["in"] = 7
    assert problems(lines, {"ingest", "select"}) == [
        "select got 7, kept 5 and gives reasons for 3",
        "select got 7 of 8 that were left",
    ]


def test_it_asks_for_nothing_and_stays_small(html):
    targets = re.findall(r'\b(?:src|href)="([^"]*)"', html)
    assert targets and all(target.startswith(("data:", "#")) for target in targets)
    assert not re.findall(r"url\((?!#)", html) and "<script" not in html
    assert len(html) < 1_500_000
    assert all(re.findall(r'<img [^>]*alt="([^"]*)"', html))


def test_a_raw_source_that_moved_away_costs_pictures_and_not_the_report(copied, curated, html, told, shown):
    plan = copied / "ledger" / "shards.json"
    plan.write_text(plan.read_text().replace(str(curated.parent / "raw"), "/nowhere"))
    without = told(copied)
    assert sections(without) == SECTIONS
    assert "the raw source cannot be read any more (shard 0000" in without
    assert any(alt.startswith("kept: ") for alt in shown(without)), "what was exported is still there"
    assert any(alt.startswith("dropped: ") for alt in shown(html))
    assert not any(alt.startswith("dropped: ") for alt in shown(without))


def test_damaged_and_missing_sidecars_cost_themselves(copied, told):
    shutil.rmtree(copied / "export")
    (copied / "filter" / "00001.parquet").write_bytes(b"damaged")
    (copied / "ingest" / "00002.parquet").unlink()
    (copied / "select" / "00009.parquet").unlink()
    older = pq.read_table(copied / "filter" / "00000.parquet").drop_columns(["contrast"])
    pq.write_table(older, copied / "filter" / "00000.parquet")
    assert sections(told(copied)) == SECTIONS


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("filter", ["Curation", "Distributions", "Dropped"]),
        ("deduplicate", ["Curation", "Distributions", "Clusters", "Dropped"]),
        ("select", SECTIONS),
    ],
)
def test_an_unfinished_run_shows_what_is_there(until, expected, curated, made, tmp_path, told, monkeypatch, capsys):
    """The stage after `until` fails. A stage that sees all shards counts as complete when the next one has begun."""
    names = list(made["tree"]["curation"]["stages"])
    if until == "select":  # all of its shards but the last export are there, and nothing says that the run is finished
        shutil.copytree(curated, tmp_path / "run")
        (tmp_path / "run" / "finished").unlink()
    else:
        broken = STAGES.load(names[names.index(until) + 1])
        monkeypatch.setattr(broken, "worker", lambda self, run: 1 / 0)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made["tree"], sort_keys=False))
        assert main(["curate", "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 1
    html = told(tmp_path / "run")
    assert sections(html) == expected
    assert "This run is not finished (it has got to: " in html and "undecided" in html


def test_sidecars_of_another_configuration_are_not_shown(copied, made, tmp_path, told, monkeypatch, capsys):
    monkeypatch.setattr(STAGES.load("filter"), "judge", lambda self, run: 1 / 0)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made["tree"], sort_keys=False))
    words = ["curation.stages.filter.min_side=51", "--out", str(copied)]
    assert main(["curate", "run", str(tmp_path / "recipe.yaml"), *words]) == 1
    assert (copied / "filter" / "00000.parquet").exists()
    assert sections(told(copied)) == ["Curation", "Distributions", "Dropped"]


def test_a_run_that_curates_nothing_or_has_not_begun_gets_no_section(tmp_path):
    for name, config in (("other", {"name": "x"}), ("new", {"name": "x", "curation": {}})):
        run = RunFolder.create(tmp_path / name, config, {}, ["megavlm"])
        report = Report("x")
        add_sections(run, report)
        assert sections(report.html()) == []


def test_the_shown_dropped_samples_are_among_the_rejected(curated, html):
    rejected = pq.read_table(curated / "rejected.parquet").to_pylist()
    assert f"{len(rejected)} samples, each listed in rejected.parquet" in html
    far = {row["key"] for row in rejected if row["reason"] == "far_from_centroid"}
    shown = re.findall(r"<span>(\w+): rank \d+ of cluster", html)
    assert shown and set(shown) <= far and len(shown) == min(len(far), 8)


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
def test_in_a_browser_of_any_width_and_scheme(html, tmp_path, open_in_browser, scheme, width):
    (tmp_path / "report.html").write_text(html)
    facts = open_in_browser(tmp_path / "report.html", width=width, scheme=scheme)
    assert facts.console == [] and facts.outside == [] and facts.overflow == 0
    assert len(facts.pictures) > 10 and not any(picture.broken for picture in facts.pictures)
    assert len(facts.charts) >= 10 and all(w > 200 and h > 60 for w, h in facts.charts)
