"""What the rank of test_eagle_minis.py runs: stages of a run folder, and its own death where it is told so."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.megatron_mm.training.work import work
from megavlm.platform.runs import RunFolder


def dies_at(question: int) -> Callable[[], bool]:
    """The question whether to save comes before a stage and after each step; the one of this number kills. 0: none."""
    asked = 0

    def wants_save() -> bool:
        nonlocal asked
        asked += 1
        if asked == question:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    return wants_save


def main(folder: str, names: str, question: str) -> None:
    torch.set_num_threads(1)
    run = RunFolder(Path(folder))
    with run.new_attempt() as attempt:
        work(run, attempt, names.split(","), Pulse(attempt, 0, 1), dies_at(int(question)))


if __name__ == "__main__":
    main(*sys.argv[1:])
