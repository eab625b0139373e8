"""Writing a checkpoint in a forked process while training goes on: how it ends, and how its result comes back.

The fork has the weights as they were at that moment (on the CPU the kernel copies the pages that training changes
meanwhile; on a GPU megatron-core copies them to the host before it forks).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from megavlm.platform.processes import die_with


class Result:
    """The one result of a forked process, in memory that both have; what megatron-core takes for a queue.

    Its own is a Manager: one more process per rank, which takes about ten seconds to start and outlives a rank that is
    killed.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("megavlm-checkpoint")  # for as long as the process lives

    def put(self, value: Any) -> None:
        """Called in the forked process."""
        os.truncate(self._file, 0)
        told, at = pickle.dumps(value), 0
        while at < len(told):
            at += os.pwrite(self._file, told[at:], at)

    def get_nowait(self) -> Any:
        """What was put since the last call; an error, which the caller raises, when that process left nothing whole."""
        told = os.pread(self._file, os.fstat(self._file).st_size, 0)
        os.truncate(self._file, 0)
        try:
            return pickle.loads(told)  # of our own fork
        except (EOFError, pickle.UnpicklingError):
            return ChildProcessError("the process that writes it was killed; did the machine run out of memory?")


def as_result() -> None:
    """Have megatron-core hand results over through a Result, in this process from now on."""
    if not isinstance(filesystem_async._results_queue, Result):
        filesystem_async._results_queue = Result()


def minded(request: AsyncRequest) -> AsyncRequest:
    """The same request, its work done in a process that ends with this one and waits for no process that is gone."""
    if request.async_fn is None:  # nothing to write on this rank
        return request
    return request._replace(async_fn=partial(_minded, os.getpid(), request.async_fn))


def _minded(parent: int, write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """In the fork, which itself forks the one process that writes. No signal asks it for anything."""
    die_with(parent)
    os.register_at_fork(after_in_child=partial(die_with, os.getpid()))
    signal.signal(signal.SIGCHLD, _end_with_a_killed_child)
    write(*args, **kwargs)


def _end_with_a_killed_child(number: int, frame: FrameType | None) -> None:
    """megatron-core would wait for its result for ever."""
    with contextlib.suppress(ChildProcessError):  # none is left
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None and ended.si_code != os.CLD_EXITED:
            os._exit(1)
