"""The ledger: a task is done if and only if its marker file exists and carries the task's fingerprint.

One small file per task, written beside and renamed, with one writer: the worker that did the task. So `kill -9`
anywhere leaves either no marker (the task is done again, over its half-written outputs) or a whole one. No database:
this also holds on a shared file system.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from megavlm.platform.storage import write_atomic

from .stages.base import Outcome

TASKS_PER_FOLDER = 1000  # 200,000 shards stay 200 folders of a size that ls can list


@dataclasses.dataclass(frozen=True)
class Ledger:
    """RUN/ledger/STAGE/000/000012.json"""

    root: Path

    def marker(self, stage: str, task: int) -> Path:
        """Where the marker of a task stands."""
        return self.root / stage / f"{task // TASKS_PER_FOLDER:03d}" / f"{task:06d}.json"

    def read(self, stage: str, task: int) -> dict[str, Any] | None:
        """What a marker says; None when there is none or it is no whole JSON object."""
        try:
            entry = json.loads(self.marker(stage, task).read_text())
        except (OSError, ValueError):
            return None
        return entry if isinstance(entry, dict) else None

    def done(self, stage: str, task: int, fingerprint: str) -> bool:
        """Whether exactly this task, with these options and inputs, has been done."""
        entry = self.read(stage, task)
        return entry is not None and entry.get("fingerprint") == fingerprint

    def mark(self, stage: str, task: int, fingerprint: str, outcome: Outcome, seconds: float) -> None:
        """Declare a task done. Its outputs must be complete on disk."""
        entry = {"fingerprint": fingerprint, "seconds": round(seconds, 3), **dataclasses.asdict(outcome)}
        path = self.marker(stage, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(entry, sort_keys=True).encode())

    def unmark(self, stage: str, task: int) -> None:
        """Withdraw a marker before its outputs are written anew: cut short, they would be a mixture."""
        self.marker(stage, task).unlink(missing_ok=True)

    def entries(self, stage: str) -> list[tuple[int, dict[str, Any]]]:
        """Every marker of a stage with its task, in the order of the tasks."""
        tasks = sorted(int(path.stem) for path in (self.root / stage).glob("*/*.json") if path.stem.isdigit())
        return [(task, entry) for task in tasks if (entry := self.read(stage, task)) is not None]
