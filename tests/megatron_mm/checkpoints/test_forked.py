"""The forked process that writes a checkpoint: its result, its end, and what becomes of it when someone is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from megavlm.megatron_mm.checkpoints.forked import Result, minded

FORK = multiprocessing.get_context("fork")
PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_forked as t
t.started(t.waits_for_a_child, t.lasts).join()
"""


def started(write: Any, *args: Any) -> Any:
    request = minded(AsyncRequest(write, args, []))
    process = FORK.Process(target=request.async_fn, args=request.async_fn_args)
    process.start()
    return process


def waits_for_a_child(child: Any) -> None:
    """As megatron-core does: until the child has said that it is done."""
    queue = FORK.JoinableQueue()
    queue.put(0)
    FORK.Process(target=child, args=(queue,)).start()
    queue.join()


def does_its_work(queue: Any) -> None:
    queue.get()
    queue.task_done()


def is_killed(queue: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lasts(queue: Any) -> None:
    time.sleep(60)


@pytest.mark.parametrize("size", [10, 5_000_000])  # a pipe holds 65,536 bytes
def test_a_result_comes_back_once(size: int) -> None:
    result = Result()
    for number in range(2):
        process = FORK.Process(target=result.put, args=({number: bytes(size)},))
        process.start()
        process.join(timeout=100)
        assert process.exitcode == 0 and result.get_nowait() == {number: bytes(size)}
    assert isinstance(result.get_nowait(), ChildProcessError)


def test_half_a_result_is_an_error() -> None:
    result = Result()
    result.put(list(range(1000)))
    os.truncate(result._file, 500)
    assert "killed" in str(result.get_nowait())


def test_it_ends_when_its_child_is_done_or_killed() -> None:
    for child, code in ((does_its_work, 0), (is_killed, 1)):
        process = started(waits_for_a_child, child)
        process.join(timeout=100)
        assert process.exitcode == code


def test_nothing_to_write_is_nothing_to_mind() -> None:
    assert minded(AsyncRequest(None, (), [])).async_fn is None


@pytest.mark.multiprocess
def test_all_of_it_dies_with_the_process_that_trains() -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(Path(__file__).parent)])
    deadline, below = time.monotonic() + 60, list[psutil.Process]()
    while len(below) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
        below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(below, timeout=10)[1]
