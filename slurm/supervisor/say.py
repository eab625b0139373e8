"""What the supervisor tells: one dated line each in the job's log, and events of the attempt at hand.

Neither may end it: where a disk is full or a file system is away, the training may still be fine.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from megavlm.platform.runs import Attempt


def say(text: str) -> None:
    """One line for the job's log."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor: {' '.join(text.split())}", flush=True)


def tell(attempt: Attempt, kind: str, **fields: Any) -> None:
    """One event of the attempt, if it can be written."""
    try:
        attempt.event(kind, **fields)
    except OSError as error:
        say(f"the event '{kind}' cannot be written: {error}")
