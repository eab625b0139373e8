"""The wish to save: USR1 (from a scheduler or a person) and TERM ask a run to save and stop with exit code 4."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

from .attempt import Attempt

ASKING = (signal.SIGUSR1, signal.SIGTERM)
LOOK_SECONDS = 0.5  # between two looks into the attempt's folder, which may lie on a busy file system


class SaveRequest:
    """`with SaveRequest() as request:` remembers a signal; the loop looks at `request.requested` between steps.

    With an `attempt` a wish written into its folder counts too. The handlers that were there before come back at the
    end. Main thread only (signal.signal raises ValueError).
    """

    def __init__(self, attempt: Attempt | None = None) -> None:
        self.signal: str | None = None
        self._attempt = attempt
        self._looked = 0.0
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether someone asked."""
        if self.signal is None and self._attempt and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self.signal = "save-requested" if self._attempt.save_requested else None
        return self.signal is not None

    def __enter__(self) -> SaveRequest:
        for number in ASKING:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
