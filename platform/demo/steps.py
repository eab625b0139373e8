"""The demo's steps. Each is one command of the command line, done once: a step whose result is there is passed over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckFailed, MegaVLMError, SavedResumable
from .crawl import write_crawl
from .places import VARIABLE
from .tasks import write_tasks

SEED = 1
RENDERINGS, READINGS, HELD_OUT = 1200, 1500, 360
RECIPE = "nvlm-d-mini"
MAX_DROP = 0.02  # of the control, as the recipe's gate has it


def make_data(data: Path) -> None:
    """Raw shards, their curation, and the tasks rendered on what survives, all below `data`."""
    raw, curation, sets = data / "raw", data / "curation", data / "sets"
    if not raw.exists():
        say("cutting photographs, planting duplicates and bad files")
        write_crawl(raw, seed=SEED)
    if not (curation / "finished").exists():
        say("curating")
        verb(["curate", "run", "curate-demo", f"curation.source.path={raw}", "--out", str(curation), "--json"], data)
    say("rendering questions on the curated photographs")
    write_tasks(curation / "export", sets, seed=SEED, renderings=RENDERINGS, readings=READINGS, held_out=HELD_OUT)


def train(out: Path, data: Path, *options: str) -> int:
    """Train the mini recipe; returns the verb's exit code, which is also the text gate's."""
    say(" ".join(["training", RECIPE, "on megatron-core", *options]))
    return verb(["train", RECIPE, "--out", str(out / "train"), "--json", *options], data, allowed=(0, 3, 5))


def train_control(out: Path, data: Path) -> None:
    """Train without the text blend; raises CheckFailed when the gate lets that pass."""
    train(out, data, "--stage", "control")
    gate = ["--stage", "control", "--suite", "text", "--baseline", "language", "--max-drop", str(MAX_DROP), "--json"]
    if verb(["eval", str(out / "train"), *gate], data, allowed=(0, 3, 5)) != CheckFailed.exit_code:
        raise CheckFailed(
            "the text gate did not refuse a model trained on pictures alone",
            where=str(out / "train" / "gate" / "control.json"),
            fix="the gate measures nothing: look at the control's text predictions beside it",
        )


def verb(words: Sequence[str], data: Path, allowed: tuple[int, ...] = (0,)) -> int:
    """Run one verb as a command of its own, its messages going to stderr.

    Raises SavedResumable when it was asked to stop and saved, MegaVLMError when it failed.
    """
    command = [sys.executable, "-m", "megavlm.platform.cli", *words]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ | {VARIABLE: str(data)})
    if done.returncode == SavedResumable.exit_code:
        raise SavedResumable("stopped on request after saving", where=str(data.parent), fix="the same command goes on")
    if done.returncode not in allowed:
        shown = "megavlm " + " ".join(words[:3])
        raise MegaVLMError(
            f"`{shown} ...` failed with exit code {done.returncode}",
            where=str(data.parent),
            fix="its message stands above; the same command again goes on where this one stopped",
        )
    return done.returncode


def say(text: str) -> None:
    """One line on stderr: stdout belongs to --json."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
