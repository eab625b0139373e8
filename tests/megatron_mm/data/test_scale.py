"""What must not grow with the number of rows: the memory of a build, the cost of opening and of looking up a step.

And how full packs are and how evenly work is shared out, on the stated mixture of benchmarks/campaigns, which has the
same at full size (manifest_10m).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from megavlm.megatron_mm.config import Mixture
from megavlm.megatron_mm.data.columns import SizesInMemory
from megavlm.megatron_mm.data.format import BATCHES, HEAD, ROWS_PER_PART, part_path, shards_path
from megavlm.megatron_mm.data.items import Ragged
from megavlm.megatron_mm.data.manifest import Manifest
from megavlm.megatron_mm.data.mixture import global_batches
from megavlm.megatron_mm.data.shares import Grid, Shares, assign
from megavlm.megatron_mm.data.write import manifest_writer
from megavlm.platform.shards import ShardReader
from megavlm.platform.shards.reader import SHARDS

CAMPAIGNS = Path(__file__).resolve().parents[3] / "benchmarks" / "campaigns"

BUILD = """
import itertools, json, pathlib, sys, time
import numpy as np
from megavlm.megatron_mm.config import Mixture
from megavlm.megatron_mm.data.columns import SizesInMemory
from megavlm.megatron_mm.data.items import Ragged
from megavlm.megatron_mm.data.mixture import global_batches
from megavlm.megatron_mm.data.write import manifest_writer
tokens = np.random.default_rng(0).integers(20, 60, 100_000).astype(np.int32)
images = Ragged(np.zeros((0, 3), np.int16), np.zeros(100_001, np.int64))
sizes = SizesInMemory(np.arange(0, 100_001, 1000), tokens, tokens, images)
mixture = Mixture.parse({"weights": {"a": 1}, "sequence_length": 64, "packs_per_batch": 1000})
with manifest_writer(pathlib.Path(sys.argv[1])) as writer:
    writer.describe({}, {})
    for batch in itertools.islice(global_batches(mixture, {"a": sizes}, 0), int(sys.argv[2]) // 1000):
        writer.add(batch)
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"mib": int(status["VmHWM"].split()[0]) / 1024, "rows": writer.rows, "cpu": time.process_time()}))
"""


def test_a_million_rows_take_the_memory_of_a_few(tmp_path):
    peaks = []
    for rows in (20_000, 1_000_000):
        command = [sys.executable, "-c", BUILD, str(tmp_path / f"{rows}"), str(rows)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert told["rows"] == len(Manifest(tmp_path / f"{rows}")) == rows
        peaks.append(told["mib"])
    assert peaks[1] < peaks[0] + 32  # their columns would be 60 MB, as objects 1 GB
    few, many = ([block for _, block in Manifest(tmp_path / name).blocks()] for name in ("20000", "1000000"))
    assert len(many) == 245 and all(a.equals(b) for a, b in zip(few[:-1], many, strict=False))


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """`grown(rows)`: a manifest that says it has so many, and has the first and the last 2^18 of them."""
    folder = tmp_path_factory.mktemp("grown")
    zeros = np.zeros(ROWS_PER_PART + 1, np.int64)
    sizes = SizesInMemory(zeros[:1].repeat(2) + [0, ROWS_PER_PART], np.full(ROWS_PER_PART, 7, np.int32),
                          np.full(ROWS_PER_PART, 3, np.int32), Ragged(np.zeros((0, 3), np.int16), zeros))  # fmt: skip
    mixture = Mixture.parse({"weights": {"a": 1}, "sequence_length": 8, "packs_per_batch": 256, "pack": False})
    shards = pa.table([["0.tar"], [ROWS_PER_PART], ["0"]], schema=SHARDS)
    with manifest_writer(folder / "real") as writer:
        writer.describe({"sequence_length": 8}, {"a": ShardReader(folder, shards)})
        for batch in itertools.islice(global_batches(mixture, {"a": sizes}, 0), ROWS_PER_PART // 256):
            writer.add(batch)
    real = folder / "real"

    def make(rows: int) -> Manifest:
        path, batches = folder / f"{rows}", rows // 256
        (path / "rows").mkdir(parents=True)
        (path / "shards").mkdir()
        os.link(real / "sets.json", path / "sets.json")
        head = json.loads((real / HEAD).read_text()) | {"rows": rows, "batches": batches}
        (path / HEAD).write_text(json.dumps(head))
        for part in (0, rows // ROWS_PER_PART - 1):
            os.link(part_path(real, 0), part_path(path, part))
        with (path / BATCHES).open("wb") as file:  # sparse: a step is looked up where it stands, and nowhere else
            file.truncate(8 * (batches + 1))
            for first in (0, (rows // ROWS_PER_PART - 1) * ROWS_PER_PART // 256):
                file.seek(8 * first)
                file.write((np.arange(first, first + 1025) * 256).astype("<i8").tobytes())
        count = rows // 10_000
        names = [f"{k:06d}.tar" for k in range(count)]
        table = pa.table([names, [10_000] * count, ["0"] * count], schema=SHARDS)
        with pa.ipc.new_file(str(shards_path(path, 0)), SHARDS) as out:
            out.write_table(table)
        return path

    return make


def test_a_step_costs_the_same_among_a_million_rows_and_a_billion(grown):
    def seconds(path: Path) -> float:
        best = []
        for _ in range(7):
            started = time.process_time()
            manifest = Manifest(path)
            sets = manifest.open_sets({"a": "/nowhere"})
            last = len(manifest) // ROWS_PER_PART * ROWS_PER_PART // 256 - 1
            packs = manifest.batch(last)
            best.append(time.process_time() - started)
            assert [pack.row for pack in packs] == list(range(last * 256, last * 256 + 256))
            assert {pack.tokens for pack in packs} == {7} and len(sets["a"]) >= 990_000
        return min(best)

    small, large = grown(4 * ROWS_PER_PART), grown(3815 * ROWS_PER_PART)
    assert len(Manifest(large)) > 1_000_000_000
    assert [pack.entries for pack in Manifest(small).batch(7)] == [pack.entries for pack in Manifest(large).batch(7)]
    # 100,000 shards instead of 100 are added up once; a look that grew with the rows would take a thousand times more
    assert seconds(large) < 2 * seconds(small) + 0.005


@pytest.mark.parametrize("length", [3200, 8192])
def test_packs_are_full_and_work_is_even(length, monkeypatch):
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    from stated_mixture import WEIGHTS, StatedMixture

    stated, starts = StatedMixture(0, images=3000), np.arange(0, 100_001, 5000)
    sizes = {name: SizesInMemory(starts, *stated.draw(name, 100_000)) for name in WEIGHTS}
    mixture = Mixture.parse({"weights": WEIGHTS, "sequence_length": length, "packs_per_batch": 256})
    padding, kinds, work, tiles = [], [], {8: [], 64: []}, {8: [], 64: []}
    for rows in itertools.islice(global_batches(mixture, sizes, 1), 40):
        padding.append(1 - rows.tokens.mean() / length)
        kinds.append(np.bincount(rows.items.set) / len(rows.items))
        squares = np.add.reduceat(rows.items.tokens.astype(np.int64) ** 2, rows.starts)
        counts = np.add.reduceat(rows.items.images.tiles(), rows.starts)
        for dp in (8, 64):
            chosen = assign(squares.astype(float).tolist(), dp)
            # A decoder of 0.5B (Qwen2's), in which attention weighs more than in larger ones.
            each = [3.6e8 * length * len(packs) + 24 * 896 * squares[packs].sum() for packs in chosen]
            work[dp].append(max(each) / np.mean(each))
            shares = Shares(Grid(dp=dp), [[int(counts[k]) for k in packs] for packs in chosen])
            looks = [len(shares.looks_at(rank)) for rank in range(dp)]
            tiles[dp].append(max(looks) / np.mean(looks))
    assert np.mean(padding) <= 0.015
    assert all(np.mean(each[8]) <= 1.03 and np.mean(each[64]) <= 1.06 for each in (work, tiles))
    # A global batch is a draw from the mixture: no kind strays further than it would by chance.
    share = np.array(list(WEIGHTS.values()))
    chance = np.sqrt(share * (1 - share) / (256 * length / np.mean([t.mean() for t in [rows.items.tokens]])))
    assert (np.abs(np.mean(kinds, 0) - share) < 0.01).all() and (np.std(kinds, 0) < 1.3 * chance).all()
