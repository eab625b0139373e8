"""Sizes measured once: resumed at the shard a kill came to, found again, the same from many processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megavlm.megatron_mm.data import measured
from megavlm.megatron_mm.data.build import SIZE_DEPENDS_ON, StageData, build_manifest
from megavlm.megatron_mm.data.measure import Measure
from megavlm.megatron_mm.data.measured import MeasuredSet, measured_set
from megavlm.platform.config import load_recipe
from megavlm.platform.shards import ShardReader, ShardWriter


@pytest.fixture
def measure(make_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., MeasuredSet]:
    """`measure(alive)` measures a set of 7 shards, two samples of which cannot be used."""
    recipe = make_recipe()
    texts = {f"t{k}": [("user", "Why? " * (k % 5)), ("assistant", "So.")] for k in range(1, 20)}
    texts["t7"], texts["t13"] = [("user", "Why?")], []
    with ShardWriter(tmp_path / "set", samples_per_shard=3) as writer:
        for key, turns in texts.items():
            writer.write(key, {"json": {"messages": [{"role": role, "content": text} for role, text in turns]}})

    def run(alive: Callable[[], object] = lambda: None, cache: str = "cache") -> MeasuredSet:
        spec = StageData.of(load_recipe(str(recipe)), "only")
        told = spec.fingerprint()
        by = {name: told[name] for name in SIZE_DEPENDS_ON}
        reader = ShardReader(tmp_path / "set")
        return measured_set("set", reader, Measure.of(spec.model, spec.data), by, tmp_path / cache, alive)

    return run


def told(found: MeasuredSet) -> tuple:
    count = int(found.sizes.starts[-1])
    images = found.sizes.images(0, count)
    arrays = (found.sizes.tokens(0, count), found.sizes.targets(0, count), images.values, images.offsets)
    return *(each.tolist() for each in arrays), list(found.rejected())


def stop_after(calls: int) -> Callable[[], None]:
    left = [calls]

    def alive() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return alive


def test_what_is_measured(measure):
    found = measure()
    tokens, targets, _, _, rejected = told(found)
    assert [line["key"] for line in rejected] == ["t5", "t7", "t10", "t13", "t15"]
    assert [index for index, count in enumerate(tokens) if not count] == [line["index"] for line in rejected]
    assert all((count > 0) == (learnt > 0) for count, learnt in zip(tokens, targets, strict=True))
    for first, last in ((0, 4), (3, 11), (18, 19), (7, 7)):
        assert found.sizes.tokens(first, last).tolist() == tokens[first:last]


def test_nothing_is_measured_twice(measure):
    first = told(measure())
    assert told(measure(stop_after(0))) == first


@pytest.mark.parametrize("calls", [0, 1, 5, 10, 17])
def test_a_stopped_measurement_goes_on_where_it_was(measure, tmp_path, calls):
    whole = told(measure(cache="other"))
    with pytest.raises(KeyboardInterrupt):
        measure(stop_after(calls))
    [folder] = (tmp_path / "cache").iterdir()
    done = 3 * (calls // 3)  # shards are appended whole
    assert (folder / "tokens.i32").stat().st_size == 4 * done and not (folder / "done").exists()
    counted = []
    assert told(measure(lambda: counted.append(1))) == whole
    assert len(counted) == 19 - done


def test_torn_files_are_not_believed(measure, tmp_path):
    whole = told(measure(cache="other"))
    with pytest.raises(KeyboardInterrupt):
        measure(stop_after(10))
    [folder] = (tmp_path / "cache").iterdir()
    with (folder / "targets.i32").open("ab") as file:
        file.write(b"torn")  # written, and no longer vouched for
    with (folder / "tokens.i32").open("ab") as file:
        file.truncate(5)  # lost with the machine
    assert told(measure()) == whole


@pytest.mark.multiprocess
def test_many_processes_measure_the_same(measure, monkeypatch):
    whole = told(measure())
    monkeypatch.setattr(measured, "ALONE", 1)
    monkeypatch.setattr(measured.os, "sched_getaffinity", lambda pid: {0, 1})
    assert told(measure(cache="other")) == whole


def test_another_set_is_measured_anew(measure, tmp_path):
    measure()
    (tmp_path / "set" / "00005.tar").write_bytes(b"")
    (tmp_path / "set" / "00005.index.parquet").unlink()
    assert len(told(measure())[0]) == 16


def test_another_length_measures_nothing_and_another_template_does(make_recipe, tmp_path, monkeypatch):
    """What decides the sizes is in the key; a longer pack is another recipe over the same sizes."""
    recipe, shards = make_recipe(), []
    shard = Measure.shard
    monkeypatch.setattr(Measure, "shard", lambda *a: shards.append(a[1]) or shard(*a))

    def build(*overrides: str) -> int:
        before = len(shards)
        spec = StageData.of(load_recipe(str(recipe), overrides), "only")
        build_manifest(spec, tmp_path / "stages" / "only" / "packs", cache=tmp_path / "cache")
        return len(shards) - before

    assert build() == 2
    assert build("stages.only.mixture.sequence_length=128") == build("seed=9") == build() == 0
    assert build("model.tiling.max_tiles=2") == 2
    lines = [json.loads(line) for line in (next((tmp_path / "cache").glob("text-*")) / "rejected.jsonl").open()]
    assert lines == [] and np.fromfile(next((tmp_path / "cache").glob("vqa-*")) / "images.3xi16", np.int16).sum() > 0
