"""What LocalExecutor starts: `child PARENT_PID VERB ...` runs one verb and dies with its parent.

A parent that is killed outright (kill -9, out of memory) cannot end its workers; a second run of the same command
would then write the same files beside them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from ..cli import main

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux; elsewhere nothing is done)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
