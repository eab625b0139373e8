"""One attempt at a run: its logs, its events, its ranks' heartbeats."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from ..errors import MegaVLMError
from .lines import append_line, read_lines, write_whole

VARIABLE = "MEGAVLM_ATTEMPT"  # the folder of the attempt that a process belongs to, set by whoever started it
STEP = "step"  # what a rank is doing between two steps; anything else (start, save, evaluate) may take its time


class Attempt:
    """attempts/NN. As a context manager it writes the events `started` (pid, host) and `ended` (exit_code)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.number = int(root.name)
        self.exit_code = 0  # what `ended` will say unless an error says otherwise

    @property
    def logs(self) -> Path:
        """The folder of log files; a Job's `logs` may be this or a folder inside."""
        folder = self.root / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def log_path(self, rank: int) -> Path:
        """The log file of one global rank."""
        return self.logs / f"rank-{rank:05d}.log"

    def event(self, kind: str, **fields: Any) -> None:
        """Append {"time" (seconds since 1970), "kind", ...} to events.jsonl."""
        append_line(self.root / "events.jsonl", {"time": round(time.time(), 3), "kind": kind, **fields})

    def events(self) -> list[dict[str, Any]]:
        """Every event so far, oldest first."""
        return read_lines(self.root / "events.jsonl")

    def request_save(self) -> None:
        """Ask the attempt to save and stop, from any machine that sees the folder; SaveRequest(attempt) hears it.

        A signal would have to reach the right process on the right machine: sent to a job step, it hits all of them.
        """
        (self.root / "save-requested").touch()

    @property
    def save_requested(self) -> bool:
        """Whether someone asked through the folder."""
        return (self.root / "save-requested").exists()

    def heartbeat(self, rank: int, step: int, doing: str = STEP) -> None:
        """Rank `rank` lives, has finished `step` and is `doing` this; one small file per rank, replaced whole."""
        folder = self.root / "heartbeat"
        folder.mkdir(exist_ok=True)
        beat = {
            "rank": rank,
            "step": step,
            "doing": doing,
            "time": round(time.time(), 3),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        write_whole(folder / f"rank-{rank:05d}", json.dumps(beat))

    def heartbeats(self) -> list[dict[str, Any]]:
        """The last heartbeat of every rank that ever gave one, by rank."""
        return [json.loads(path.read_text()) for path in sorted((self.root / "heartbeat").glob("rank-*"))]

    def __enter__(self) -> Attempt:
        self.event("started", **_process())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.event("ended", exit_code=self.exit_code)
        else:
            self.event("ended", exit_code=_exit_code(error), error=f"{type(error).__name__}: {error}")


def _process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _exit_code(error: BaseException) -> int:
    if isinstance(error, MegaVLMError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1
