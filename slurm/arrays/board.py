"""The folder of one array: its commands in blocks, who has leased which block, and what became of each command.

Written for a shared file system: a lease is a file that only one can create, and each worker alone grows its own file
of results, which is there from the beginning, so that no directory has to be looked at again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from megavlm.platform.executor import Job
from megavlm.platform.runs.lines import append_line, read_lines, write_whole

MOST_BLOCKS = 1000  # lease files of one array, whatever the number of commands
BLOCKS_PER_WORKER = 8  # the last block of the slowest worker is what all others wait for
SILENT_SECONDS = 900.0  # a driver that has not been heard of for so long is gone, and its array ends


class Ending(NamedTuple):
    """How a command ended; `seconds` is wall time."""

    command: int
    exit_code: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Board:
    """Opened by the driver and by every worker; `slot` numbers an array's tasks."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, job: Job, todo: Sequence[int], workers: int) -> Board:
        """A new one for these commands of a job; `folder` must not exist."""
        folder.mkdir(parents=True)
        for name in ("leases", "results"):
            (folder / name).mkdir()
        blocks = cut(todo, min(MOST_BLOCKS, workers * BLOCKS_PER_WORKER))
        tasks = {index: list(job.tasks[index]) for index in todo}
        logs = {index: str(job.log_path(index).absolute()) for index in todo}
        write_whole(folder / "board.json", json.dumps({"blocks": blocks, "tasks": tasks, "logs": logs}))
        board = cls(folder)
        for slot in range(min(workers, len(blocks))):
            board._results(slot).touch()
        board.beat()
        return board

    def commands(self) -> Commands:
        """What is to be done."""
        return Commands(**json.loads((self.folder / "board.json").read_text()))

    def lease(self, slot: int, blocks: Sequence[list[int]]) -> Iterator[list[int]]:
        """Block after block that is this worker's: those it had in an earlier life (a requeued job), and free ones."""
        for step in range(len(blocks)):
            number = (slot + step) % len(blocks)  # each begins elsewhere, to meet few others
            path = self.folder / "leases" / f"{number:04d}"
            with contextlib.suppress(FileExistsError):
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                os.write(handle, str(slot).encode())
                os.close(handle)
            if path.read_text() == str(slot):
                yield blocks[number]

    def begin(self, slot: int, index: int) -> None:
        """The worker goes about a command; which node that is on stands there for whoever looks for one that is ill."""
        node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        append_line(self._results(slot), {"begun": index, "node": node})

    def end(self, slot: int, ending: Ending) -> None:
        """It is done with it."""
        append_line(self._results(slot), {"ended": ending})

    def told(self) -> Told:
        """What the workers have told so far."""
        told = Told({}, {})
        for path in sorted((self.folder / "results").iterdir()):
            for line in read_lines(path):
                if "begun" in line:
                    told.begun.setdefault(line["begun"], []).append(int(path.stem))
                else:
                    told.endings[line["ended"][0]] = Ending(*line["ended"])
        return told

    def beat(self) -> None:
        """The driver lives."""
        (self.folder / "driver").touch()

    def driven(self, slot: int) -> bool:
        """Whether the driver lives, told by the file system's clock alone: machines' clocks differ."""
        own = self._results(slot)
        own.touch()
        return own.stat().st_mtime - (self.folder / "driver").stat().st_mtime < SILENT_SECONDS

    def _results(self, slot: int) -> Path:
        return self.folder / "results" / f"{slot:05d}.jsonl"


class Commands(NamedTuple):
    """Blocks of commands' numbers; number (as text) -> words, and -> where its output goes."""

    blocks: list[list[int]]
    tasks: dict[str, list[str]]
    logs: dict[str, str]


class Told(NamedTuple):
    """By command: the workers that began it, one for each time; and how it ended, where it did."""

    begun: dict[int, list[int]]
    endings: dict[int, Ending]


def cut(items: Sequence[int], most: int) -> list[list[int]]:
    """`items` in at most `most` blocks of one length, the last ones shorter by one; none is empty."""
    count = min(len(items), most)
    bounds = [len(items) * block // count for block in range(count + 1)] if count else []
    return [list(items[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)]
