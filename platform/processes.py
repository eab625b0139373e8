"""What processes that others start have to mind: they end with their parent, and share the machine's cores."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, of that process id, ends (Linux; elsewhere nothing is done).

    A parent that is killed outright (kill -9, out of memory) cannot end what it started; the same command, given again,
    would then write the same files beside it.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def environment(processes: int) -> dict[str, str]:
    """Ours for one of `processes` that work side by side, each with its share of the cores unless told otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // processes)), **os.environ}
