"""Progress on stderr: a bar on a terminal, a heartbeat line every few seconds in a log, nothing when told so."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Generic, TextIO, TypeVar

T = TypeVar("T")
HEARTBEAT_SECONDS = 10.0


def progress(
    items: Iterable[T] | None = None,
    *,
    total: int | None = None,
    label: str = "",
    unit: str = "item",
    every: float = HEARTBEAT_SECONDS,
) -> Progress[T]:
    """Wrap an iterable (`for x in progress(xs, label="embed")`) or count by hand (`with progress(total=9) as bar`).

    `total` is taken from `len(items)` where that exists; `every` is the seconds between heartbeat lines.
    Environment: MEGAVLM_QUIET=1 shows nothing; NO_COLOR and TERM=dumb are respected.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    return Progress(items, _choose_display(total, label, unit, every))


class Progress(Generic[T]):
    """An iterable and a context manager over one display."""

    def __init__(self, items: Iterable[T] | None, display: Display) -> None:
        self._items, self._display = items, display

    def __enter__(self) -> Progress[T]:
        self._display.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.stop()

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items or ():
                yield item
                self.advance()

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self._display.advance(count)

    def tell(self, line: str, *, warn: bool = False) -> None:
        """Show a line: above the bar on a terminal, among the heartbeats in a log."""
        self._display.tell(line, warn)


class Display:
    """The quiet display, and what the others have in common."""

    def start(self) -> None:
        """The first unit is about to begin."""

    def advance(self, count: int) -> None:
        """`count` more units are done."""

    def tell(self, line: str, warn: bool) -> None:
        """Show a line; one that warns may look different."""

    def stop(self) -> None:
        """There will be no more, whether all were done or not."""


class Heartbeat(Display):
    """One line every `every` seconds and one at the end: readable in a log file and by `megavlm logs`."""

    def __init__(
        self,
        total: int | None,
        label: str,
        unit: str,
        every: float,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._label, self._unit, self._every = total, label, unit, every
        self._stream, self._clock = stream or sys.stderr, clock
        self._done = 0
        self._started = self._told = clock()

    def start(self) -> None:
        self._started = self._told = self._clock()

    def advance(self, count: int) -> None:
        self._done += count
        now = self._clock()
        if now - self._told >= self._every:
            self._told = now
            self._say(now)

    def tell(self, line: str, warn: bool) -> None:
        self._told = self._clock()  # it is a sign of life
        print(f"{self._label}: {line}", file=self._stream, flush=True)

    def stop(self) -> None:
        self._say(self._clock(), last=True)

    def _say(self, now: float, last: bool = False) -> None:
        elapsed = max(now - self._started, 1e-9)
        rate = self._done / elapsed
        of = f"/{self._total}" if self._total is not None else ""
        line = f"{self._label}: {self._done}{of} {_plural(self._unit)}, {elapsed:.1f} s, {rate:.3g}/s"
        if not last and self._total is not None and rate > 0:
            line += f", {max(self._total - self._done, 0) / rate:.0f} s left"
        print(line, file=self._stream, flush=True)


def _plural(unit: str) -> str:
    return f"{unit}s"


class Bar(Display):
    """A rich progress bar; imports rich only when one is shown."""

    def __init__(self, total: int | None, label: str, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
        columns += [TextColumn(_plural(unit), markup=False), TimeElapsedColumn(), TimeRemainingColumn()]
        self._bar = RichProgress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(label, total=total)

    def start(self) -> None:
        self._bar.start()

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def tell(self, line: str, warn: bool) -> None:
        style = "yellow" if warn else None
        self._bar.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._bar.stop()


def _choose_display(total: int | None, label: str, unit: str, every: float) -> Display:
    if os.environ.get("MEGAVLM_QUIET") == "1":
        return Display()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Bar(total, label, unit)
    return Heartbeat(total, label, unit, every)
