"""Processes that do not outlive the one that started them, and that do not meet in one folder."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from megavlm.platform.errors import MegaVLMError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, however that ends.

    A run that was killed hard must not go on writing into the folder that the same command, given again, writes into.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; raises MegaVLMError when another process does. The kernel frees it at any end."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MegaVLMError(
                "another `megavlm train` is at work in this run folder",
                where=str(path.parent),
                fix="wait for it, or give another --out",
            ) from None
        yield
