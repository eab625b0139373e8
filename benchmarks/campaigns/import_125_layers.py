"""Campaign: a decoder of 125 layers, more than 8 GiB in 32 shards, imported in how much memory and time?

`make campaign NAME=import_125_layers` takes about ten minutes and 17 GB of disk (TMPDIR); the result is
import_125_layers.md beside this file. The shards are written here, of random bfloat16 values; the import and the
comparison are the shipped verbs, each a process of its own, whose peak resident memory the kernel tells (pages of
mapped files are part of it). The idle process has loaded all that the import loads.
Exits with 3 when a bound of the table does not hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from safetensors.torch import save_file

from megavlm.megatron_mm.conversion import FORMATS
from megavlm.megatron_mm.conversion.accounts import pair_up
from megavlm.megatron_mm.conversion.ours import slots
from megavlm.megatron_mm.data.build import StageData
from megavlm.platform.config import load_recipe

LAYERS, SHARDS, SEED = 125, 32, 1
SHAPE = {"hidden": 1536, "heads": 12, "kv_heads": 2, "ffn": 6272, "vocab": 32000, "max_positions": 4096}
ALLOWANCE = 512 * 2**20  # bytes over two shards
MINUTES = 60
MIB = 2**20
RESULT = Path(__file__).with_suffix(".md")
IDLE = "import megavlm.megatron_mm.conversion.importing, megavlm.megatron_mm.conversion.verifying"


class Ran(NamedTuple):
    """A process that ended well: its peak resident memory in bytes, seconds of wall time and of CPU."""

    peak: int
    seconds: float
    cpu: float


def write_recipe(folder: Path, layers: int) -> StageData:
    """A recipe of that decoder; its other axes are small."""
    model = {"decoder": {"name": "qwen2", "layers": layers, **SHAPE}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"base": "nvlm-d-mini", "parameters": None, "model": model}))
    return StageData.of(load_recipe(str(folder / "recipe.yaml")), "language")


def plant(folder: Path, spec: StageData, shards: int) -> list[int]:
    """Published weights in the order of transformers' shards, cut by bytes; returns the files' sizes."""
    fmt = FORMATS.load("qwen2")()
    pairs = pair_up(fmt, spec.model, slots(spec.model), ["decoder"])
    shapes = [item for pair in pairs for item in zip(pair.theirs, pair.published_shapes(), strict=True)]
    each = sum(torch.Size(shape).numel() for _, shape in shapes) // shards + 1
    folder.mkdir()
    draw, files, weight_map, done = torch.Generator().manual_seed(SEED), [{}], {}, 0
    for name, shape in shapes:
        if done >= len(files) * each:
            _write(folder, len(files), files[-1])
            files[-1] = {}
            files.append({})
        files[-1][name] = torch.randn(shape, generator=draw, dtype=torch.bfloat16)
        weight_map[name] = _name(len(files))
        done += torch.Size(shape).numel()
    _write(folder, len(files), files[-1])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(fmt.config(spec.model)))
    return [(folder / _name(number)).stat().st_size for number in range(1, len(files) + 1)]


def _name(number: int) -> str:
    return f"model-{number:05d}.safetensors"


def _write(folder: Path, number: int, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / _name(number))


def run(*words: str) -> Ran:
    """Run Python with these words; raises CalledProcessError when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), words)
    return Ran(used.ru_maxrss * 1024, time.perf_counter() - started, used.ru_utime + used.ru_stime)


def measure(folder: Path, layers: int, shards: int) -> tuple[list[int], dict[str, Ran]]:
    """Sizes of the shards, and what idling, importing and comparing took."""
    sizes = plant(folder / "published", write_recipe(folder, layers), shards)
    os.sync()
    verb = ["-m", "megavlm.platform.cli", "convert"]
    source, out = str(folder / "published"), str(folder / "run")
    ran = {"idle": run("-c", IDLE)}
    ran["import"] = run(*verb, "import", source, "--recipe", str(folder / "recipe.yaml"), "--out", out)
    ran["verify"] = run(*verb, "verify", out, source, "--logits-up-to", "0")
    return sizes, ran


def table(sizes: list[int], ran: dict[str, Ran], layers: int) -> tuple[list[str], bool]:
    """The result's rows, and whether all bounds hold."""
    bound = 2 * max(sizes) + ALLOWANCE
    over = {name: ran[name].peak - ran["idle"].peak for name in ("import", "verify")}
    enough = layers < LAYERS or (sum(sizes) >= 8 * 2**30 and len(sizes) >= 30)
    holds = enough and over["import"] <= bound and ran["import"].seconds <= 60 * MINUTES
    rows = [
        f"| published | {sum(sizes) / 2**30:.2f} GiB in {len(sizes)} shards | >= 8 GiB in >= 30 |",
        f"| largest shard | {max(sizes) / MIB:.0f} MiB | |",
        f"| peak of the idle process | {ran['idle'].peak / MIB:.0f} MiB | |",
        f"| peak of the import over it | {over['import'] / MIB:.0f} MiB | {bound / MIB:.0f} MiB |",
        f"| time of the import | {_took(ran['import'])} | {MINUTES} min |",
        f"| peak of the comparison over it | {over['verify'] / MIB:.0f} MiB | |",
        f"| time of the comparison, bit for bit | {_took(ran['verify'])} | |",
    ]
    return rows, holds


def _took(ran: Ran) -> str:
    return f"{ran.seconds / 60:.1f} min ({ran.cpu:.0f} s CPU)"


def main() -> int:
    """Run the campaign and write its result; 3 where a bound does not hold."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows, holds = table(*measure(Path(folder), LAYERS, SHARDS), LAYERS)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    head = [
        "# A decoder of 125 layers, imported",
        "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=import_125_layers`",
        f"- seed: {SEED}",
        f"- machine: {os.cpu_count()} cores, no GPU",
        f"- versions: torch {version('torch')}, megatron-core {version('megatron-core')}",
        f"- wall time: {time.perf_counter() - started:.0f} s",
        "",
        "| figure | value | bound |",
        "|---|---|---|",
    ]
    tail = [
        "",
        "The comparison reads checkpoint and shards anew and finds every weight bit-equal. The shards are read through",
        "mapped files, at most two open at a time, whose pages count as the process' memory. What is not shown: a",
        "network file system's speed, and tensors larger than a shard's size here (72B's table alone is 2.3 GiB).",
    ]
    RESULT.write_text("\n".join([*head, *rows, *tail]) + "\n")
    print("\n".join(rows))
    return 0 if holds else 3


if __name__ == "__main__":
    sys.exit(main())
