"""One task of an array: `python -m megavlm.slurm.arrays.worker FOLDER` leases blocks of commands and runs them here."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.executor import WORKER
from megavlm.platform.executor.in_process import run_here

from .board import Board, Ending


def main(argv: Sequence[str] | None = None) -> int:
    """Run what can be leased, until nothing is left or the driver is gone."""
    # asks a driver to stop; sent to a whole job step, it must not kill a task
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    (folder,) = sys.argv[1:] if argv is None else argv
    board, slot = Board(Path(folder)), int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    # by its job too: the array of a killed driver may still be there, and no two may write one file
    os.environ[WORKER] = f"slurm-{os.environ.get('SLURM_ARRAY_JOB_ID', os.environ['SLURM_JOB_ID'])}-{slot}"
    commands = board.commands()
    done = board.told().endings  # by an earlier life of this task, if any
    for block in board.lease(slot, commands.blocks):
        for index in block:
            if not board.driven(slot):
                return 0
            if index not in done:
                run_command(board, slot, index, commands.tasks[str(index)], Path(commands.logs[str(index)]))
    return 0


def run_command(board: Board, slot: int, index: int, words: Sequence[str], log: Path) -> None:
    """Run one command in this process, and tell. Only the log of one that fails is kept: there may be thousands."""
    board.begin(slot, index)
    started = time.monotonic()
    exit_code = run_here(words, log)
    if exit_code == 0:
        log.unlink()
    board.end(slot, Ending(index, exit_code, round(time.monotonic() - started, 3)))


if __name__ == "__main__":
    sys.exit(main())
