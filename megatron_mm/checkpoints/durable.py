"""Whether files are on disk, not only in memory: what has to outlast a power cut. Loads no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

PROBE_BYTES = 2**20


def flush(paths: Iterable[Path]) -> None:
    """Wait until files are on disk, or folders' lists of names; what is not there is left out."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def refusal(folder: Path) -> OSError | None:
    """What the file system says when it is asked to take another megabyte: no space, no quota, ... or None.

    torch's writer does not pass on why a write failed.
    """
    probe = folder / f".probe.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
