"""Distributions of a run against numpy over its sidecars; limits where the recipe has them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.config import CurationStages
from megavlm.data_curation.report import view as view_module
from megavlm.data_curation.report.distributions import AFTER_ALL, measured, readings, sides
from megavlm.data_curation.report.limits import Limit, limits
from megavlm.data_curation.report.measures import numbers, scores, words
from megavlm.data_curation.report.view import spread


def sidecars(folder, stage: str) -> pa.Table:
    parts = []
    for path in sorted((folder / stage).glob("*.parquet")):
        if path.name != "pairs.parquet":
            table = pq.read_table(path)
            parts.append(table.append_column("shard", pa.repeat(path.stem, len(table))))
    return pa.concat_tables(parts)


def tallies(view) -> dict:
    cut = limits(view.stages)
    return {tally.measure.name: tally for reading in readings(view) for tally in measured(view, reading, cut)}


def test_every_histogram_equals_numpys_over_all_sidecars(curated, view):
    found, pictures = tallies(view(curated)), sidecars(curated, "filter").to_pandas()
    selected = sidecars(curated, "select").to_pandas()
    kept = set(zip(selected.shard[selected.keep], selected.key[selected.keep], strict=True))
    stays = np.array([name in kept for name in zip(pictures.shard, pictures.key, strict=True)])
    truth = {
        "short_side": np.fmin(pictures.width, pictures.height),
        "aspect": np.fmax(pictures.width, pictures.height) / np.fmin(pictures.width, pictures.height),
        "bytes": pictures.bytes,
        "contrast": pictures.contrast,
        "pdq_quality": pictures.pdq_quality,
    }
    for name, values in truth.items():
        for bins, wanted in ((found[name].before, values), (found[name].after, values[stays])):
            assert bins.counts.tolist() == np.histogram(wanted.dropna(), bins.edges)[0].tolist(), name
        assert found[name].after.total == len(kept) > 0
    cosine = found["cosine"]
    assert cosine.before.counts.tolist() == np.histogram(selected.cosine, cosine.before.edges)[0].tolist()
    assert cosine.after.counts.tolist() == np.histogram(selected.cosine[selected.keep], cosine.after.edges)[0].tolist()
    assert (cosine.after_name, found["bytes"].after_name) == ("kept by select", AFTER_ALL)


def test_limits_are_drawn_and_what_lies_beyond_is_counted(curated, view, html):
    tally = tallies(view(curated))["short_side"]
    chart = tally.chart()
    assert dict(chart.marks) == {"dropped below 50": 50}
    assert "below 50: 1 (" in chart.note and "41 samples" in chart.note
    for drawn in ("dropped below 50", "dropped above 3", "dropped below 4", "dropped below 1"):
        assert f"<!-- {drawn} -->" in html or f">{drawn}</text>" in html


def test_limits_follow_the_recipe():
    extra = [{"use": "similarity", "min": 0.3}, {"use": "punsafe", "max": 0.4}, {"use": "watermark", "max": 0.7}]
    stages = {
        "ingest": {},
        "filter": {"min_side": 448, "extra": [*extra, {"use": "sides", "min": 500}]},
        "decontaminate": {"against": {"a": "b"}, "radius": 40},
    }
    stages |= {"embed": {"embedder": "pixels"}, "cluster": {"clusters": 2}, "assign": {}, "deduplicate": {}}
    recipe = CurationStages.parse(stages)
    found = {name: [(limit.side, limit.value) for limit in some] for name, some in limits(recipe).items()}
    assert found["short_side"] == [("below", 448), ("below", 500)]
    assert (found["similarity"], found["punsafe"], found["watermark"]) == (
        [("below", 0.3)],
        [("above", 0.4)],
        [("above", 0.7)],
    )
    assert (found["leak_bits"], found["pdq_quality"], found["aspect"]) == (
        [("up to", 40)],
        [("below", 50)],
        [("above", 3)],
    )


@pytest.mark.parametrize(("side", "count"), [("below", 2), ("above", 1), ("up to", 3)])
def test_what_is_beyond_a_limit(side, count):
    assert Limit(3.0, side).beyond(np.array([1, 2, 3, 4, np.nan])) == count


def test_width_and_height_are_counted_once_each(curated, view):
    density = sides(view(curated), limits(view(curated).stages))
    known = sidecars(curated, "filter").to_pandas().dropna(subset=["width"])
    truth = np.histogram2d(known.height, known.width, (density.y_edges, density.x_edges))[0]
    assert np.array(density.counts).tolist() == truth.tolist() and truth.sum() == len(known)
    assert "shorter side 50" in density.lines


def test_scores_are_read_from_any_release_and_rules_of_ones_own():
    told = ['{"similarity": 0.31, "punsafe": "0.2"}', '{"SIMILARITY": 0.2, "AESTHETIC_SCORE": 6.5}', "{}", None]
    values = scores([]).derive(pa.table({"metadata": told}))
    assert values["similarity"].tolist()[:2] == [0.31, 0.2] and np.isnan(values["similarity"][2:]).all()
    assert values["punsafe"][0] == 0.2 and values["aesthetic"][1] == 6.5


def test_words_are_pythons():
    texts = ["a photo", "  one ", "", "two\nlines of  text", None]
    found = words(pa.chunked_array([texts]))
    assert found[:4].tolist() == [len(text.split()) for text in texts[:4]] and np.isnan(found[4])


def test_many_shards_are_measured_in_part_and_the_report_says_so(curated, view, monkeypatch):
    monkeypatch.setattr(view_module, "SHARDS_MEASURED", 2)
    seen = view(curated)
    assert seen.shards("filter") == ["00000", "00002"]
    wanted = sum(len(pq.read_table(curated / "filter" / f"{name}.parquet")) for name in seen.shards("filter"))
    assert tallies(seen)["bytes"].before.total == wanted
    assert seen.scope("filter") == "Measured on 2 of 4 shards, evenly spread."


@pytest.mark.parametrize(("items", "count"), [(10, 3), (3, 10), (0, 2), (7, 7)])
def test_a_spread_is_even(items, count):
    found = spread(range(items), count)
    assert len(found) == min(items, count) == len(set(found)) and found == sorted(found)
    steps = np.diff(found)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_numbers_turn_null_into_nan():
    assert np.isnan(numbers(pa.chunked_array([[1, None]], pa.int16()))[1])
