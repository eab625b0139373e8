"""Processes that do not meet in one stage of a run folder.

The kernel frees a lock with the process that holds it. On a shared file system the holder's machine passes that on, and
one that lost its power passes nothing on: NFSv4 waits for the end of a lease, NFSv3 until the machine is back. So
whoever finds a lock taken from another machine waits a little. And a job that Slurm started again takes over what an
earlier start of the same job left on another machine: Slurm holds that one for dead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from megavlm.platform.errors import MegaVLMError

WAIT_SECONDS = 120.0
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # Lustre mounted without `flock`, some NFS


@contextlib.contextmanager
def exclusive(paths: Sequence[Path], wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock files `paths`. Raises MegaVLMError, naming the holder, when another process keeps one of them.

    For one that a process of this machine holds there is no waiting; otherwise up to `wait` seconds.
    """
    with contextlib.ExitStack() as held:
        for path in sorted(paths):
            file = held.enter_context(_taken(path, time.monotonic() + wait))
            file.seek(0)
            file.truncate()
            file.write(json.dumps(_me()))
            file.flush()
        yield


@contextlib.contextmanager
def _taken(path: Path, deadline: float) -> Iterator[IO[str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            if _lock(file):
                yield file
                return
            holder = _holder(path)
        if _left_behind(holder):
            path.unlink(missing_ok=True)  # the next one is another file, with no lock on it
        elif holder.get("host") in {None, socket.gethostname()} or time.monotonic() >= deadline:
            raise _refused(path, holder)
        else:
            time.sleep(1.0)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        print(f"warning: no locks on this file system ({error.strerror}): {file.name}", file=sys.stderr)
    return True


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}


def _holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):  # it has the lock, and is about to write
        return {}
    return holder if isinstance(holder, dict) else {}


def _left_behind(holder: dict[str, Any]) -> bool:
    """Whether an earlier start of this very job holds it, from another machine."""
    job = os.environ.get("SLURM_JOB_ID")
    return job is not None and holder.get("job") == job and holder.get("host") != socket.gethostname()


def _refused(path: Path, holder: dict[str, Any]) -> MegaVLMError:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "a process"
    return MegaVLMError(
        f"another `megavlm train` is at work on stage '{path.parent.name}' of this run: {who}",
        where=str(path),
        fix=f"wait for it, or give another --out; if that machine is gone for good, delete {path}",
    )
