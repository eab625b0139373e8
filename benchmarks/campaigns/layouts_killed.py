"""Campaign: a training killed after every five steps, and given again on another layout each time.

`make campaign NAME=layouts_killed` takes about five minutes on two cores; the result is layouts_killed.md beside this
file. `megavlm train` is killed (SIGKILL, every process) as soon as the next five steps are saved and one more is done,
and the same run folder goes on with other layout keys. Exits with 3 unless every step learnt from the same batch as in
a run that nobody touched, with a loss within 1e-4 of it, and to the bit where the layout stays the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from killing_training import STAGE, descendants
from training_kills import write_recipe

from megavlm.platform.runs import RunFolder

STEPS, EACH, PATIENCE_SECONDS = 30, 5, 300
SHAPE = ["model.decoder.layers=4", "model.decoder.kv_heads=4", "stages.sft.mixture.packs_per_batch=8"]
SHAPE += [f"stages.sft.steps={STEPS}"]
LAYOUTS: list[dict[str, Any]] = [
    {"tp": 2, "pp": 2},
    {},
    {"tp": 2, "cp": 2},
    {"pp": 2, "vp": 2},
    {"pp": 4, "first_stage_layers": 1, "last_stage_layers": 1},
    {"tp": 2, "sequence_parallel": "true"},
]
DATA = ("batch", "samples", "tiles", "visual_tokens", "text_tokens", "learnt")  # what a step learnt from
RESULT = Path(__file__).with_suffix(".md")

Lines = dict[int, dict[str, Any]]


def command(recipe: Path, out: Path, layout: dict[str, Any]) -> list[str]:
    """Train on this layout, on as many processes as it splits the model over: 4, or 1 for none."""
    keys = [f"stages.sft.parallel.{key}={value}" for key, value in layout.items()]
    processes = ["--nproc", "4" if layout else "1"]
    words = [sys.executable, "-m", "megavlm.platform.cli", "train", str(recipe), "--out", str(out)]
    return [*words, *processes, *SHAPE, *keys]


def lines(run: Path) -> Lines:
    """The last line of every step."""
    return {line["step"]: line for line in RunFolder(run).metrics() if line["stage"] == STAGE and "loss" in line}


def killed_after(words: list[str], run: Path, step: int) -> int:
    """Start it, and kill all of it once `step` is done; returns the last step it did."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not run.exists() or max(lines(run), default=0) < step:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it ended before step {step}, or nothing happened for minutes")
            time.sleep(0.02)
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return max(lines(run))


def broken(recipe: Path, run: Path, layouts: list[dict[str, Any]]) -> tuple[Lines, list[str]]:
    """A run through all `layouts`, killed after each but the last; its lines, and a word on every attempt."""
    told = []
    for number, layout in enumerate(layouts, start=1):
        words, before = command(recipe, run, layout), max(lines(run), default=0) if run.exists() else 0
        name = " ".join(f"{key} {value}" for key, value in layout.items()) or "one process"
        if number < len(layouts):
            last = killed_after(words, run, max(number * EACH, before) + 1)
            told.append(f"| {number} | {name} | killed after step {last} |")
        else:
            subprocess.run(words, check=True, capture_output=True)
            told.append(f"| {number} | {name} | to the end |")
    return lines(run), told


def main() -> int:
    """Run all three and write the result."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder)
        subprocess.run(command(recipe, folder / "whole", LAYOUTS[0]), check=True, capture_output=True)
        whole = lines(folder / "whole")
        other, attempts = broken(recipe, folder / "other", LAYOUTS)
        same, _ = broken(recipe, folder / "same", LAYOUTS[:1] * 4)
    figures = {
        "steps": (len(other), len(same), STEPS),
        "steps that learnt from another batch": (count(other, whole, DATA), count(same, whole, DATA), 0),
        "largest difference of the loss": (farthest(other, whole), farthest(same, whole), "1e-4; 0"),
        "steps whose loss or norm is not to the bit": ("", count(same, whole, ("loss", "grad_norm")), 0),
    }
    write(figures, attempts, time.monotonic() - started)
    wrong = [*figures["steps that learnt from another batch"][:2], count(same, whole, ("loss", "grad_norm"))]
    right = len(other) == len(same) == len(whole) == STEPS and farthest(other, whole) <= 1e-4
    return 0 if right and not any(wrong) else 3


def count(ours: Lines, whole: Lines, keys: tuple[str, ...]) -> int:
    """Steps of the unbroken run in which one of these is another."""
    return sum(any(ours[step][key] != line[key] for key in keys) for step, line in whole.items())


def farthest(ours: Lines, whole: Lines) -> float:
    """The largest difference of two losses of one step."""
    return max(abs(ours[step]["loss"] - line["loss"]) for step, line in whole.items())


def write(figures: dict[str, tuple[Any, Any, Any]], attempts: list[str], seconds: float) -> None:
    """layouts_killed.md, whole."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    text = [
        "# A training killed after every five steps, on another layout each time", "",
        f"## {time.strftime('%Y-%m-%d')}, commit {commit}", "",
        "- command: `make campaign NAME=layouts_killed`", "- seed: 3",
        "- machine: 2 cores, no GPU; gloo, float32",
        f"- versions: torch {version('torch')}, megatron-core {version('megatron-core')}",
        f"- wall time: {seconds:.0f} s", "",
        "| figure | another layout each time | the same layout, killed three times | bound |", "|---|---|---|---|",
        *(f"| {name} | {' | '.join(map(str, values))} |" for name, values in figures.items()), "",
        "| attempt | layout | end |", "|---|---|---|", *attempts, "",
    ]  # fmt: skip
    RESULT.write_text("\n".join(text))


if __name__ == "__main__":
    sys.exit(main())
