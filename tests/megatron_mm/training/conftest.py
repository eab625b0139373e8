"""A recipe of two stages that trains in seconds, over generated sets, and the command line as a subprocess."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megavlm.platform.shards import ShardWriter

STAGES = """\
  language:
    train: [decoder]
    mixture: {weights: {text: 1}, sequence_length: 128, packs_per_batch: 2}
    steps: 4
    precision: fp32
    parallel: {tp: 2}
    optimizer: {lr: 1e-2, min_lr: 1e-3, warmup_steps: 2}
    evaluate: {text: text}
  sft:
    after: [language]
    train: [encoder, connector, decoder]
    mixture: {weights: {text: 1, vqa: 2}, sequence_length: 128, packs_per_batch: 2}
    steps: 40
    precision: fp32
    parallel: {tp: 2}
    optimizer: {lr: 1e-2, min_lr: 1e-3, warmup_steps: 2}
    save_every: 5
    evaluate: {text: text, vqa: vqa}
    blind: [vqa]
    gate: {suite: text, baseline: language, max_drop: 0.9}
"""


def _sample(question: str, answer: str, name: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "id": name, "kind": "all", "answer": answer}


def _picture(colour: tuple[int, int, int], width: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((40, width, 3), colour, np.uint8)).save(out, "png")
    return out.getvalue()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    """The path of a recipe with its sets beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    with ShardWriter(folder / "text") as writer:
        for k in range(60):
            writer.write(f"t{k}", {"json": _sample(f"What is {k % 10} + 1?", str(k % 10 + 1), f"t{k}")})
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    with ShardWriter(folder / "vqa") as writer:
        for k in range(30):
            name, colour = list(colours.items())[k % 3]
            fields = {"png": _picture(colour, 40 + 40 * (k % 2)), "json": _sample("<image>What colour?", name, f"v{k}")}
            writer.write(f"v{k}", fields)
    return write_recipe(folder, STAGES, max_tiles=2, seed=5)


@pytest.fixture
def megavlm() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`megavlm("train", ...)` starts the command line; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "megavlm.platform.cli", *words]
        env = os.environ | {"OMP_NUM_THREADS": "1", "MEGAVLM_QUIET": "1"}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
