"""Files of parts: what goes in by shard comes out by bucket, in order, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation.grouping import Grouping, groups_of
from megavlm.data_curation.shuffle import read_part, sorted_parts, write_parts


@given(st.lists(st.integers(0, 9), max_size=50), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_every_row_is_in_its_part_in_stable_order(tmp_path_factory, keys, parts, files):
    folder = tmp_path_factory.mktemp("parts")
    keys = np.array(keys, np.int32)
    columns = {
        "key": keys,
        "number": np.arange(len(keys)),
        "name": np.array([f"n{i}" for i in range(len(keys))], dtype=object),
        "features": np.arange(3 * len(keys), dtype=np.float16).reshape(-1, 3),
    }
    paths = []
    for number, rows in enumerate(np.array_split(np.arange(len(keys)), files)):
        own = {name: values[rows] for name, values in columns.items()}
        paths.append(folder / f"{number}.arrow")
        write_parts(paths[-1], own, *sorted_parts(own["key"], own["key"] * parts // 10, parts))
    for part in range(parts):
        found = read_part(paths, part)
        wanted = [i for rows in np.array_split(np.arange(len(keys)), files) for i in sorted(
            (i for i in rows if keys[i] * parts // 10 == part), key=lambda i: (keys[i], i))]  # fmt: skip
        for name, values in columns.items():
            assert np.array_equal(found[name], values[wanted]) and found[name].dtype == values.dtype
            assert found[name].shape[1:] == values.shape[1:]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(IndexError):
        write_parts(tmp_path / "x.arrow", {"a": np.arange(3)}, np.array([5]), np.array([1]))
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.integers(0, 20), max_size=20), st.integers(1, 30))
def test_groups_are_neighbours_that_fit(counts, most):
    groups = groups_of(np.array(counts, int), most)
    assert [shard for group in groups for shard in group] == list(range(len(counts)))
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        total = sum(counts[shard] for shard in group)
        assert len(group) <= 1 or total <= most
        assert following is None or total + counts[following[0]] > most


@given(st.integers(1, 2_000_000), st.integers(1, 5000))
def test_buckets_are_ranges_of_clusters(images, clusters):
    whole = Grouping(np.array([images]), clusters)
    buckets = whole.bucket(np.arange(clusters))
    assert (np.diff(buckets) >= 0).all() and set(buckets) == set(range(whole.buckets))
