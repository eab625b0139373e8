"""A line in the log for each request: never what was asked, nor what was answered."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect

from .answers import Count
from .limits import Refused


class Line:
    """What the log will say of a request of this kind."""

    def __init__(self, kind: str) -> None:
        self.kind, self.status, self.count = kind, "200", Count()
        self._started = time.monotonic()

    def __str__(self) -> str:
        count = self.count
        tokens = f"{count.prompt} + {count.completion} tokens, {count.tiles} tiles"
        end = f" {count.finish}" if count.finish else ""
        now, seconds = time.strftime("%H:%M:%S"), time.monotonic() - self._started
        return f"{now} {self.kind} {self.status} {tokens}{end} {seconds:.2f} s"


@contextmanager
def logged(kind: str) -> Iterator[Line]:
    """Print the line at the end, whatever the end is."""
    line = Line(kind)
    try:
        yield line
    except Refused as error:
        line.status = f"{error.status} {error.code or ''}".strip()
        raise
    except ClientDisconnect:
        line.status = "gone"
        raise
    finally:
        print(line, file=sys.stderr, flush=True)
