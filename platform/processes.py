"""What processes that others start have to mind: they end with their parent, and share the machine's cores."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PROC = Path("/proc")


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


def resident(process: int | str = "self") -> tuple[int, int]:
    """Bytes that a process holds in memory, now and at the most (VmRSS, VmHWM); 0 of one that is gone.

    `getrusage` is no substitute: its maximum is inherited from the process that forked this one.
    """
    try:
        lines = (PROC / str(process) / "status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {line[:5]: 1024 * int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return found.get("VmRSS", 0), found.get("VmHWM", 0)
