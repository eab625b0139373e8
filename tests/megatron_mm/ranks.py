"""Ranks for the tests, with the environment that torchrun gives them, and without torchrun's own start.

They are spawned, not forked from a process that has loaded torch: one such start did not end in 200 seconds.
torchrun itself is what tests of `megavlm train` and its like start.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import runpy
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

HOST = "127.0.0.1"
MOST_THREADS = 400  # gloo leaves some behind with every process group, and a rank with thousands slows the machine
LAST_WORDS_SECONDS = 3  # for the other ranks, when one has failed


class RankFailed(Exception):
    """What each rank that failed said, or how it died."""


def load(script: Path) -> ModuleType:
    """The script as a module: what its ranks do, for the test to do in one process."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Rank(NamedTuple):
    """A process that waits for a script, runs it, says how that ended, and waits again."""

    process: BaseProcess
    pipe: Connection

    def threads(self) -> int:
        """How many it has; 0 where it is gone."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return len(list(tasks.iterdir())) if tasks.is_dir() else 0

    def told(self) -> str:
        """What went wrong with the script, or nothing; waits for it."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(LAST_WORDS_SECONDS)
            return f"died with exit code {self.process.exitcode}"


class Ranks:
    """Processes that stay, for one script after another: loading torch and megatron-core takes longer than most do.

    As many as the largest script so far asked for. After a failure all are replaced, so that no other test gets what is
    left of it, and when one has too many threads.
    """

    def __init__(self) -> None:
        self.ranks: list[Rank] = []

    def run(self, script: Path, processes: int, *words: object, seconds: float = 400) -> None:
        """`torchrun --nproc-per-node PROCESSES SCRIPT WORDS`, all on this machine.

        Raises RankFailed with the tracebacks of those that fail, and TimeoutError after `seconds`.
        """
        if any(rank.threads() > MOST_THREADS for rank in self.ranks):
            self.close()
        while len(self.ranks) < processes:
            self.ranks.append(_spawned())
        store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        ranks = self.ranks[:processes]
        try:
            for number, rank in enumerate(ranks):
                rank.pipe.send((_torchruns(number, processes, store.port), str(script), [str(word) for word in words]))
            _finish(ranks, f"{script.name} on {processes} ranks", seconds)
        except BaseException:  # an interrupt or pytest's timeout as well
            self.close()
            raise

    def close(self) -> None:
        """End them all."""
        for rank in self.ranks:
            rank.process.kill()
            rank.process.join()
            rank.pipe.close()
        self.ranks.clear()


def run_on_ranks(script: Path, processes: int, *words: object, seconds: float = 400) -> None:
    """`Ranks.run` on processes of its own, for scripts that kill them or leave something behind."""
    ranks = Ranks()
    try:
        ranks.run(script, processes, *words, seconds=seconds)
    finally:
        ranks.close()


def _finish(ranks: Sequence[Rank], what: str, seconds: float) -> None:
    """Until all have said how it ended; once one has failed, the others soon get no more time."""
    running = {rank.pipe: (number, rank) for number, rank in enumerate(ranks)}
    wrong, deadline = [], time.monotonic() + seconds
    while running and (ready := wait(list(running), timeout=deadline - time.monotonic())):
        for pipe in ready:
            number, rank = running.pop(pipe)
            if message := rank.told():
                wrong.append(f"{what}: rank {number} {message}")
                deadline = min(deadline, time.monotonic() + LAST_WORDS_SECONDS)
    if wrong:
        raise RankFailed("\n".join(wrong))
    if running:
        raise TimeoutError(f"{what} took more than {seconds} s")


def _spawned() -> Rank:
    ours, its = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(its,))
    process.start()
    its.close()  # so that its death is the pipe's end
    return Rank(process, ours)


def _torchruns(number: int, processes: int, port: int) -> dict[str, str]:
    """This process' environment and what torchrun adds to it; like torchrun, it keeps the store of their addresses."""
    return {
        **os.environ,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": str(True),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
    }


def _serve(pipe: Connection) -> None:
    """In the new process, until the other end is gone."""
    while True:
        try:
            work: tuple[dict[str, str], str, list[str]] = pipe.recv()
        except EOFError:
            return
        try:
            _run(*work)
        except BaseException:  # SystemExit as well: a rank says how it ended, whatever that was
            pipe.send(traceback.format_exc())
        else:
            pipe.send("")
        gc.collect()  # models and process groups of one script are gone before the next
        if not gc.get_freeze_count():
            gc.freeze()  # what the first one loaded stays, and is not looked through again


def _run(environment: Mapping[str, str], script: str, words: Sequence[str]) -> None:
    """The script as a program of its own: words, environment and folder of imports are this one's."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv, path = [script, *words], list(sys.path)
    sys.path.insert(0, str(Path(script).parent))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(script, run_name="__main__")
    finally:
        sys.path[:] = path
    if dist.is_initialized():
        raise AssertionError("the script left torch.distributed running: backend.shutdown() is missing")
