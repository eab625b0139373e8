"""The command line as a subprocess, and a stage that trains in this very process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.training.loop import Session, StageTrainer
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder

HERE = ["stages.language.parallel.tp=1", "stages.language.train=[encoder,connector,decoder]", "stages.language.steps=6"]
SIGHT = ["stages.language.mixture.weights={text: 1, vqa: 2}"]


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


@pytest.fixture
def open_trainer(recipe: Path, tmp_path: Path) -> Iterator[Callable[..., StageTrainer]]:
    """`open_trainer(*overrides, run=...)`: the stage `language` of the tiny recipe, on images and text, one process."""
    torch.set_num_threads(1)

    def make(*overrides: str, run: str = "run") -> StageTrainer:
        found = load_recipe(str(recipe), [*HERE, *SIGHT, *overrides])
        folder = RunFolder.create(tmp_path / run, found.tree, found.origins, ["train"], may_change=["*"])
        ensure_packs(folder, StageData.of(found, "language"))
        backend.start_processes()
        attempt = folder.new_attempt()
        return StageTrainer(Session(folder, attempt, found, Pulse(attempt, 0, 1), lambda: False), "language")

    make.words = [*HERE, *SIGHT]  # as overrides of the command line
    yield make
    backend.shutdown()
