"""Filter decides anew from what it measured; what passes only now was measured by nobody after it."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

OPTIONS = [
    ("filter.min_side=95",),
    ("filter.max_aspect=1.2",),
    ("filter.min_contrast=0",),
    ("filter.min_contrast=20",),
    ("filter.min_caption_words=3",),
    ("filter.min_caption_characters=8",),
    ("filter.extra=[{use: sides, min: 90, min_pixels: 11000}, {use: caption_pattern, patterns: [fox]}]",),
]


def line(funnel, stage):
    return next(line for line in funnel if line["stage"] == stage)


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_its_own_line_is_that_of_a_run(finished, copy_of, ask, really, words):
    told = ask(finished, *words)
    mine = line(told["what_if"][0]["funnel"], "filter")
    real = line(really(copy_of(finished), *words, "cluster.clusters=1"), "filter")
    assert {key: mine[key] for key in ("in", "kept", "dropped")} == {
        key: real[key] for key in ("in", "kept", "dropped")
    }
    assert mine["dropped"] != line(told["now"], "filter")["dropped"]


def test_a_stricter_filter_leaves_nothing_unmeasured_and_every_line_adds_up(finished, ask):
    told = ask(finished, "filter.min_side=95")
    lines = told["what_if"][0]["funnel"]
    for one, following in zip(lines, [*lines[1:], None], strict=True):
        assert one["in"] == one["kept"] + sum(one["dropped"].values()) and one["not_measured"] == 0
        assert following is None or following["in"] == one["kept"]
    assert any("other centroids" in note for note in told["notes"])


def test_what_passes_only_now_is_counted_where_it_was_not_measured(finished, ask):
    lines = ask(finished, "filter.min_contrast=0")["what_if"][0]["funnel"]
    flat = line(ask(finished, "select.nearest=7")["now"], "filter")["dropped"]["flat_image"]
    assert flat == 3 and line(lines, "filter")["kept"] == 54 + flat
    assert {one["stage"]: one["not_measured"] for one in lines if one["not_measured"]} == {"embed": flat}
    assert line(lines, "embed")["kept"] == line(lines, "decontaminate")["in"] == 54


@pytest.fixture
def early(tools, curate, tmp_path):
    """A run whose decontamination comes right after the filter, which dropped one image as too small."""
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "leaked.jpg").write_bytes(tools.encode(tools.photo(2), quality=50))
    images = [tools.photo(i, *((70, 60) if i == 5 else (120, 100))) for i in range(12)]
    tools.write_shard(
        tmp_path / "raw", "00000", [tools.raw(f"k{i}", tools.encode(one)) for i, one in enumerate(images)]
    )
    tree = tools.recipe(tmp_path / "raw", filter={"min_side": 80})
    stages = tree["curation"]["stages"]
    against = {"decontaminate": {"against": {"eval": str(tmp_path / "eval")}}}
    first = {name: stages.pop(name) for name in ("ingest", "filter")}
    tree["curation"]["stages"] = first | against | stages
    curate(tree)
    return tmp_path / "run"


def test_a_hash_never_taken_is_not_measured_rather_than_no_leak(early, ask):
    lines = ask(early, "filter.min_side=50")["what_if"][0]["funnel"]
    assert {one["stage"]: one["not_measured"] for one in lines if one["not_measured"]} == {"decontaminate": 1}
    assert line(lines, "decontaminate")["dropped"] == {"evaluation_image": 1}
    sidecar = pq.read_table(early / "filter" / "00000.parquet").to_pylist()
    assert [row["key"] for row in sidecar if row["pdq"] is None] == ["k5"]


def test_before_cluster_stricter_decisions_are_exact_up_to_the_features(early, ask, copy_of, really):
    words = ("filter.min_contrast=20", "decontaminate.radius=112")
    told = ask(early, *words)
    mine, real = told["what_if"][0]["funnel"], really(copy_of(early), *words, "cluster.clusters=1")
    for stage in ("filter", "decontaminate", "embed"):
        assert line(mine, stage)["kept"] == line(real, stage)["kept"]
        assert line(mine, stage)["dropped"] == line(real, stage)["dropped"]
    assert line(mine, "decontaminate")["kept"] < line(told["now"], "decontaminate")["kept"]


def test_a_leak_let_pass_by_a_smaller_radius_was_never_embedded(early, ask):
    lines = ask(early, "decontaminate.radius=0")["what_if"][0]["funnel"]
    assert line(lines, "decontaminate")["dropped"] == {}
    assert {one["stage"]: one["not_measured"] for one in lines if one["not_measured"]} == {"embed": 1}
