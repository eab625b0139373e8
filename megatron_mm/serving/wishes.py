"""The wish to end: Ctrl-C or TERM, once to finish what is being answered, twice to end at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


class Wishes:
    """Inside, counts the signals instead of dying of them, and calls `heard(count)`. Main thread only."""

    def __init__(self, heard: Callable[[int], None] = lambda count: None) -> None:
        self.count = 0
        self._heard = heard
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Wishes:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._heard(self.count)
