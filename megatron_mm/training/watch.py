"""Whether an attempt is over on another machine, so that none waits for ranks that are no more. Loads no torch."""

from __future__ import annotations

import time
from collections.abc import Collection

from megavlm.platform.runs import Attempt

LOOK_SECONDS = 2.0
LOOKS_PER_SECOND = 50.0  # at the events' file, by all machines together
GRACE_SECONDS = 10.0  # a rank whose partner is gone mostly sees that by itself, and says what it saw


class Watch:
    """Looks for events of some `kinds` in an attempt that `machines` take part in."""

    def __init__(self, attempt: Attempt, kinds: Collection[str], machines: int) -> None:
        self._attempt, self._kinds = attempt, kinds
        self._every = max(LOOK_SECONDS, machines / LOOKS_PER_SECOND)
        self._looked = time.monotonic()
        self._seen: float | None = None

    def over(self) -> bool:
        """Whether such an event has stood there for GRACE_SECONDS."""
        now = time.monotonic()
        if self._seen is None and now - self._looked >= self._every:
            self._looked = now
            self._seen = now if any(event["kind"] in self._kinds for event in self._attempt.events()) else None
        return self._seen is not None and now - self._seen >= GRACE_SECONDS

    def ended_well(self) -> bool:
        """Whether the leading machine says that nothing failed: done, saved, or judged by a gate."""
        codes = [event["exit_code"] for event in self._attempt.events() if event["kind"] == "ended"]
        return bool(codes) and codes[-1] in {0, 3, 4, 5}
