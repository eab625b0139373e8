"""Processes that do not meet in one run folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from megavlm.platform.errors import MegaVLMError


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
