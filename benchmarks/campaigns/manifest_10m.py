"""Campaign: 10^7 packed sequences of 10^8 measured samples, in how much memory and time? How full, how even?

`make campaign NAME=manifest_10m` takes about ten minutes and 7 GB of disk (TMPDIR); the result is manifest_10m.md
beside this file. The sizes are those of the stated mixture (stated_mixture.py), in the files that measuring writes; no
shard exists. Building, looking up and sharing out are the shipped code; the build is a process of its own, whose peak
resident memory the kernel tells.
Exits with 3 when a bound of the table does not hold.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from stated_mixture import WEIGHTS, StatedMixture

from megavlm.megatron_mm.config import Mixture
from megavlm.megatron_mm.data.columns import SizesOnDisk
from megavlm.megatron_mm.data.manifest import Manifest
from megavlm.megatron_mm.data.mixture import global_batches
from megavlm.megatron_mm.data.shares import Grid, Shares, assign
from megavlm.megatron_mm.data.write import manifest_writer
from megavlm.platform.shards.reader import SHARDS, ShardReader

SAMPLES, SHARD, BATCH, SEED = 100_000_000, 10_000, 256, 1
LONG = 16_384  # a length at which so many samples make ROWS packed sequences
ROWS = 10_000_000
LENGTHS, STEPS = (3200, 8192), 200
BOUNDS = {"padding": 0.015, 8: 1.03, 64: 1.06, "peak_mib": 2048}
# Qwen2's: parameters without embeddings, layers, hidden size. The smaller, the more attention weighs.
DECODERS = {"0.5B": (3.6e8, 24, 896), "7B": (6.5e9, 28, 3584), "72B": (7.0e10, 80, 8192)}
RESULT = Path(__file__).with_suffix(".md")


def recipe(length: int) -> Mixture:
    """The stated mixture at one length."""
    mixture: Mixture = Mixture.parse({"weights": WEIGHTS, "sequence_length": length, "packs_per_batch": BATCH})
    return mixture


def plant(folder: Path) -> None:
    """The files that measuring 10^8 samples would have written."""
    for number, (name, weight) in enumerate(WEIGHTS.items()):
        mixture, ends = StatedMixture(SEED + number, images=200_000), 0
        (folder / name).mkdir()
        files = [(folder / name / file).open("wb") for file, _ in SizesOnDisk.FILES]
        for _ in range(round(SAMPLES * weight / SHARD) // 10):
            tokens, targets, tiles = mixture.draw(name, 10 * SHARD)
            columns = (tokens, targets, ends + tiles.offsets[1:], tiles.values)
            for file, column, (_, dtype) in zip(files, columns, SizesOnDisk.FILES, strict=True):
                file.write(column.astype(dtype.base).tobytes())
            ends += len(tiles.values)
        for file in files:
            file.close()


def sizes(folder: Path) -> dict[str, SizesOnDisk]:
    """Those files."""
    shards = {name: round(SAMPLES * weight / SHARD) for name, weight in WEIGHTS.items()}
    return {name: SizesOnDisk(folder / name, np.arange(n + 1, dtype=np.int64) * SHARD) for name, n in shards.items()}


def build(folder: Path) -> None:
    """In a process of its own: write the manifest, and tell how it went."""
    started, of = time.monotonic(), sizes(folder)
    tables = {
        name: [[f"{k:06d}.tar" for k in range(n)], [SHARD] * n, ["0" * 32] * n]
        for name, n in ((name, len(each.starts) - 1) for name, each in of.items())
    }
    readers = {name: ShardReader(folder / name, pa.table(table, schema=SHARDS)) for name, table in tables.items()}
    with manifest_writer(folder / "packs") as writer:
        writer.describe({"sequence_length": LONG, "batch": {"unit": "packs", "size": BATCH}}, readers)
        for batch in itertools.islice(global_batches(recipe(LONG), of, SEED), -(-ROWS // BATCH)):
            writer.add(batch)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    # VmHWM: getrusage's maximum is inherited from the process that forked this one
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"peak_mib": peak, "cpu_seconds": time.process_time(), "seconds": time.monotonic() - started}))


def looked_up(path: Path, count: int = 200) -> dict[str, float]:
    """Milliseconds to open the manifest and its sets, and to look up a global batch, at random places."""
    opened = []
    for _ in range(5):
        started = time.perf_counter()
        manifest = Manifest(path)
        manifest.open_sets({told["name"]: told["folder"] for told in manifest.sets})
        opened.append(time.perf_counter() - started)
    steps = (np.random.default_rng(0).random(count) * manifest.batches).astype(int).tolist()
    started = time.perf_counter()
    samples = sum(len(pack.entries) for step in steps for pack in manifest.batch(step))
    each = (time.perf_counter() - started) / count
    return {"open_ms": 1e3 * min(opened), "step_ms": 1e3 * each, "samples_per_step": samples / count}


def evenness(of: dict[str, SizesOnDisk], length: int) -> dict[str, Any]:
    """Mean padding, and mean over steps of the largest over the mean share of FLOPs and tiles."""
    padding, tiles = [], {dp: [] for dp in (8, 64)}
    flops: dict[tuple[str, int], list[float]] = {(name, dp): [] for name in DECODERS for dp in (8, 64)}
    for rows in itertools.islice(global_batches(recipe(length), of, SEED), STEPS):
        padding.append(1 - rows.tokens.mean() / length)
        squares = np.add.reduceat(rows.items.tokens.astype(np.float64) ** 2, rows.starts)
        counts = np.add.reduceat(rows.items.images.tiles(), rows.starts)
        for dp in (8, 64):
            chosen = assign(squares.tolist(), dp)
            shares = Shares(Grid(dp=dp), [[int(counts[k]) for k in packs] for packs in chosen])
            looks = np.array([len(shares.looks_at(rank)) for rank in range(dp)])
            tiles[dp].append(looks.max() / looks.mean())
            for name, (parameters, layers, hidden) in DECODERS.items():
                linear = 6 * parameters * length * np.array([len(packs) for packs in chosen])
                work = linear + 6 * layers * hidden * np.array([squares[packs].sum() for packs in chosen])
                flops[name, dp].append(work.max() / work.mean())
    mean = {f"flops {name} DP{dp}": float(np.mean(each)) for (name, dp), each in flops.items()}
    mean |= {f"tiles DP{dp}": float(np.mean(each)) for dp, each in tiles.items()}
    return {"padding": float(np.mean(padding)), **mean}


def page(told: dict[str, Any], even: dict[int, dict[str, float]], wall: float) -> list[str]:
    """The result's text."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    table = ["| figure | value | bound |", "|---|---|---|"]
    table += [f"| peak memory of the build | {told['peak_mib']:.0f} MiB | {BOUNDS['peak_mib']} MiB |"]
    table += [
        f"| time of the build, one process | {told['seconds'] / 60:.1f} min ({told['cpu_seconds']:.0f} s CPU) | |"
    ]
    table += [f"| rows; samples in them | {told['rows']:,}; {told['samples']:,} | |"]
    table += [f"| bytes a row | {told['bytes_per_row']:.0f} | |"]
    table += [f"| open the manifest and its sets | {told['open_ms']:.1f} ms | |"]
    table += [
        f"| look up a step of {BATCH} packs ({told['samples_per_step']:.0f} samples) | {told['step_ms']:.1f} ms | |"
    ]
    for length, figures in even.items():
        for name, value in figures.items():
            bound = BOUNDS["padding"] if name == "padding" else BOUNDS[int(name.rpartition("DP")[2])]
            shown = f"{100 * value:.2f} % | {100 * bound:.1f} %" if name == "padding" else f"{value:.4f} | {bound}"
            table.append(f"| {length}: {name} | {shown} |")
    return [
        "# Ten million packed sequences",
        "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=manifest_10m`",
        f"- seed: {SEED}",
        f"- machine: {os.cpu_count()} cores, no GPU",
        f"- versions: numpy {version('numpy')}, pyarrow {version('pyarrow')}",
        f"- {SAMPLES:,} samples in shards of {SHARD:,}; build at {LONG} tokens, evenness over {STEPS} steps",
        f"- wall time: {wall:.0f} s",
        "",
        *table,
        "",
        "FLOPs are the decoder's (Qwen2 of that size), the largest over the mean of the replicas; tiles the encoder's,",
        "of all ranks; both the mean over the steps. The weights are those of what is drawn: samples above the length",
        "are left out of a set, and the set keeps its weight.",
    ]


def main() -> int:
    """Plant, build, look up, share out, write the table."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        plant(folder)
        done = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True)
        told = json.loads(done.stdout.splitlines()[-1]) | looked_up(folder / "packs")
        manifest = Manifest(folder / "packs")
        parts = sum(file.stat().st_size for file in (folder / "packs" / "rows").iterdir())
        told |= {"rows": len(manifest), "bytes_per_row": parts / len(manifest)}
        told["samples"] = sum(len(block["index"].flatten()) for _, block in manifest.blocks())
        print(told, flush=True)
        even = {length: evenness(sizes(folder), length) for length in LENGTHS}
    RESULT.write_text("\n".join(page(told, even, time.monotonic() - started)) + "\n")
    held = told["peak_mib"] <= BOUNDS["peak_mib"]
    for figures in even.values():
        held &= figures.pop("padding") <= BOUNDS["padding"]
        held &= all(value <= BOUNDS[int(each.rpartition("DP")[2])] for each, value in figures.items())
    return 0 if held else 3


if __name__ == "__main__":
    sys.exit(main() if len(sys.argv) == 1 else build(Path(sys.argv[1])))
