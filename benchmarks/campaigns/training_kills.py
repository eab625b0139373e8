"""Campaign: is a training that was killed 100 times, a third of them inside a save, to the bit the one that never was?

`make campaign NAME=training_kills` takes about half an hour on two cores that nobody else uses; the result is
training_kills.md beside this file. `megavlm train` on two data-parallel ranks is killed (SIGKILL: the command, one
rank, or every process at once) and given again, as often as it takes; half of the kills hit a run that saves while it
waits, half one that saves while it trains. Both go on side by side. Exits with 3 unless every resume began at the
newest whole checkpoint, every loss and gradient norm ever written down is to the bit that of a run nobody touched, no
process outlived its command, and a third of the kills left half a checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from killing_training import Broken, Failed, Strike
from PIL import Image

from megavlm.platform.runs import RunFolder
from megavlm.platform.shards import ShardWriter

KILLS, SEED, STEPS = 100, 1, 300
AIMS = ("save", "step", "save", "any")  # a save is over before some of those that are aimed at one strike
VICTIMS = ("command", "rank", "everything")
WAYS = {"while it waits": "false", "while it trains": "true"}  # checkpoint.asynchronous
RESULT = Path(__file__).with_suffix(".md")
PACKAGES = ("torch", "megatron-core")
RECIPE = """\
seed: 3
model:
  tiling: {{tile: 28, max_tiles: 2}}
  encoder: {{name: internvit, image_size: 28, patch_size: 7, layers: 1, hidden: 32, heads: 4, ffn: 64}}
  connector: {{name: pixel_shuffle_mlp, hidden: 48}}
  injection: {{name: inline}}
  decoder: {{name: qwen2, layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 48, vocab: 512}}
data:
  tokenizer: mini
  template: {{name: chatml, system: ""}}
  sets: {{vqa: {folder}/vqa}}
stages:
  sft:
    train: [encoder, connector, decoder]
    mixture: {{weights: {{vqa: 1}}, sequence_length: 128, packs_per_batch: 4}}
    steps: {steps}
    precision: fp32
    optimizer: {{lr: 1e-3, schedule: constant}}
    checkpoint: {{every: 5, keep_last: 2, keep_every: 50}}
"""


def write_recipe(folder: Path) -> Path:
    """A tiny model over a set of 60 coloured images."""
    with ShardWriter(folder / "vqa") as writer:
        for k in range(60):
            picture, name = io.BytesIO(), ("red", "green", "blue")[k % 3]
            Image.new("RGB", (40 + 40 * (k % 2), 40), name).save(picture, "png")
            turns = [{"role": "user", "content": "<image>What colour?"}, {"role": "assistant", "content": name}]
            writer.write(f"v{k}", {"png": picture.getvalue(), "json": {"id": f"v{k}", "messages": turns}})
    path = folder / "killed.yaml"
    path.write_text(RECIPE.format(folder=folder, steps=STEPS))
    return path


def command(recipe: Path, out: Path, asynchronous: str) -> list[str]:
    """The command that is killed, and given again."""
    words = [sys.executable, "-m", "megavlm.platform.cli", "train", str(recipe), "--nproc", "2", "--out", str(out)]
    return [*words, f"stages.sft.checkpoint.asynchronous={asynchronous}"]


def losses(run: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every line ever written, those of repeated steps too."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in RunFolder(run).metrics() if "loss" in line]


class Half:
    """Half of the kills, all in one way of saving: as many runs as it takes, each to its end."""

    def __init__(self, recipe: Path, folder: Path, way: str) -> None:
        self.strikes: list[Strike] = []
        self.runs: list[RunFolder] = []
        self.failures: list[str] = []
        draw = random.Random(f"{SEED} {way}")
        while len(self.strikes) < KILLS // 2 and not self.failures:
            out = folder / f"{WAYS[way]}-{len(self.runs)}"
            broken = Broken(command(recipe, out, WAYS[way]), out, way, draw)
            self.runs.append(broken.run)
            try:
                self._kill(broken, draw)
            except Failed as error:
                self.failures.append(f"{way}: {error}")

    def _kill(self, broken: Broken, draw: random.Random) -> None:
        while len(self.strikes) < KILLS // 2:
            told = broken.strike(AIMS[len(self.strikes) % len(AIMS)], draw.choice(VICTIMS))
            if told is None:
                return
            self.strikes.append(told)
            print(len(self.strikes), *told, flush=True)
        broken.finish()


def differing(run: RunFolder, wanted: dict[int, tuple[float, float]]) -> int:
    """Lines that are not those of the unbroken run, and steps that are missing."""
    lines = losses(run.root)
    wrong = sum(wanted[step] != (loss, norm) for step, loss, norm in lines)
    return wrong + len(wanted.keys() - {step for step, _, _ in lines})


def report(halves: list[Half], wrong: int, seconds: float) -> str:
    """The result's page."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    strikes = [strike for half in halves for strike in half.strikes]
    inside = sum(strike.in_save for strike in strikes)
    runs = [run for half in halves for run in half.runs]
    counts = Counter((strike.where, strike.way) for strike in strikes)
    figures = {
        "kills": f"{len(strikes)} |",
        "of them inside a save, by what was left on disk": f"{inside} | >= {KILLS // 3}",
        "resumes that failed": f"{sum(len(half.failures) for half in halves)} | 0",
        "lines of metrics": f"{sum(len(losses(run.root)) for run in runs)} |",
        "lines that are not to the bit the unbroken run's, and steps without one": f"{wrong} | 0",
        "processes that outlived their command": f"{sum(s.outlived for s in strikes)} | 0",
    }
    table = [
        f"| {where} | " + " | ".join(str(counts[where, way]) for way in WAYS) + " |"
        for where in sorted({strike.where for strike in strikes})
    ]
    each = [
        f"| {number} | {' | '.join('' if value is None else str(value) for value in strike)} |"
        for number, strike in enumerate(strikes, start=1)
    ]
    return "\n".join([
        "# Trainings that are killed and go on", "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}", "",
        "- command: `make campaign NAME=training_kills`",
        f"- seed: {SEED}",
        f"- machine: {os.cpu_count()} cores, no GPU; load {os.getloadavg()[2]:.1f}",
        f"- versions: {', '.join(f'{name} {version(name)}' for name in PACKAGES)}",
        f"- 2 data-parallel ranks, distributed optimizer, {STEPS} steps a run, a checkpoint every 5; {len(runs)} runs",
        f"- wall time: {seconds:.0f} s", "",
        "| figure | value | bound |", "|---|---|---|",
        *(f"| {name} | {value} |" for name, value in figures.items()), "",
        *(f"- {failure}" for half in halves for failure in half.failures),
        "| where it struck | " + " | ".join(f"saving {way}" for way in WAYS) + " |", "|---|---|---|", *table, "",
        "Every kill; `from` is the step that the attempt went on from, `step` the last one it had done:", "",
        "| | saving | aimed at | killed | where it struck | from | step | outlived |", "|---" * 8 + "|", *each, "",
    ])  # fmt: skip


def main() -> int:
    """Train once in peace, then kill."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        recipe = write_recipe(folder)
        subprocess.run(command(recipe, folder / "whole", "false"), check=True, capture_output=True)
        wanted = {step: (loss, norm) for step, loss, norm in losses(folder / "whole")}
        with ThreadPoolExecutor() as pool:
            halves = list(pool.map(partial(Half, recipe, folder), WAYS))
        wrong = sum(differing(run, wanted) for half in halves for run in half.runs)
        RESULT.write_text(report(halves, wrong, time.monotonic() - started))
    strikes = [strike for half in halves for strike in half.strikes]
    outlived, inside = sum(strike.outlived for strike in strikes), sum(strike.in_save for strike in strikes)
    failures = [failure for half in halves for failure in half.failures]
    print(json.dumps({"wrong": wrong, "outlived": outlived, "inside": inside, "failures": failures}))
    return 3 if wrong or outlived or failures or inside < KILLS // 3 or len(wanted) != STEPS else 0


if __name__ == "__main__":
    sys.exit(main())
