"""The report's sections show pictures of clusters, of pairs, and of what was dropped and why."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from megavlm.data_curation.report import add_sections
from megavlm.platform.report import Report
from megavlm.platform.runs import RunFolder


@pytest.fixture
def html(crawl, tools, curate, tmp_path):
    folder, copies = crawl
    extra = [tools.raw("bad0", b""), tools.raw("bad1", tools.encode(tools.photo(1, 30, 30)))]
    tools.write_shard(folder, "00009", extra)
    curate(tools.recipe(folder, select={"nearest": 6}))
    report = Report("a run")
    add_sections(RunFolder.open(tmp_path / "run"), report)
    return report.html(), copies


def test_it_says_what_was_dropped_why_and_by_which_method(html):
    text, copies = html
    for words in (
        "too_small: 1",
        "empty: 1",
        "failed_to_download: 3",
        "duplicate_hash: 3",
        "far_from_centroid",
        "4 clusters",
    ):
        assert words in text
    assert all(copy in text for copy in copies)
    assert "pixels at 8 px. Weights: none" in text


def test_its_pictures_are_thumbnails_that_decode(html):
    text, _ = html
    pictures = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) > 20
    sizes = {Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures}
    assert sizes <= {(120, 100), (30, 30)}


def test_a_run_that_curated_nothing_gets_no_section(tmp_path):
    run = RunFolder.create(tmp_path / "other", {"name": "x"}, {}, ["megavlm"])
    report = Report("x")
    add_sections(run, report)
    assert "Curation" not in report.html()
