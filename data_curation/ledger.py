"""The ledger: which tasks are done, in a handful of files that any number of workers may add to.

RUN/ledger/STAGE/ holds one `part-WRITER.jsonl` per worker, grown by whole lines, and `all.jsonl`, into which the driver
merges the parts when a stage begins and when it is complete. Every line is about one task: a mark (done, with the
fingerprint of what it was done for) or a withdrawal (its outputs are being written anew). Lines carry a version, which
goes up by one with each word on a task; the highest version is the task's state, wherever it stands. So files may be
read in any order, and the same line may stand in two: `kill -9` anywhere, of worker or driver, leaves each task either
not done or whole. No clock and no lock is needed, which also holds on a shared file system.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megavlm.platform.errors import ConfigError
from megavlm.platform.executor import WORKER
from megavlm.platform.runs.lines import append_line
from megavlm.platform.storage import write_atomic

from .stages.base import Outcome

# A line is recognised by its frame and parsed only where its facts are wanted: 200,000 lines in a quarter of a second.
# Facts end with two numbers, so that a line cut short after some other brace is not taken for a whole one.
FACTS = rb'\{\}|\{.*"received": \d+, "seconds": [\d.e+-]+\}'
FRAME = re.compile(rb'\{"task": (\d+), "version": (\d+), "fingerprint": (?:null|"([^"\\]*)"), "facts": (%b)\}' % FACTS)


class Line(NamedTuple):
    """The last word on a task. Without a fingerprint it is not done; version 0 means that nothing was ever said."""

    task: int
    version: int = 0
    fingerprint: str | None = None
    facts: bytes = b"{}"  # JSON: seconds, received, kept, dropped, notes

    def entry(self) -> dict[str, Any]:
        """The facts."""
        return dict(json.loads(self.facts))


@dataclasses.dataclass(frozen=True)
class Ledger:
    """RUN/ledger"""

    root: Path

    def state(self, stage: str, tasks: Mapping[int, object] | None = None) -> dict[int, Line]:
        """The last word on every task of a stage that anything is known of, or on those among `tasks`."""
        state: dict[int, Line] = {}
        for line in self._lines(stage, tasks):
            state[line.task] = later(line, state[line.task]) if line.task in state else line
        return state

    def done(self, stage: str, prints: Mapping[int, str]) -> set[int]:
        """Those tasks among `prints` (task -> fingerprint) that were done with these options and inputs."""
        return {task for task, line in self.state(stage, prints).items() if line.fingerprint == prints[task]}

    def withdraw(self, stage: str, last: Line) -> Line:
        """Take a mark back before its outputs are written anew: cut short, they would be a mixture.

        `last` is the task's last word; returns the new one. The withdrawal is on disk before an output can be.
        """
        if last.fingerprint is None:
            return last
        line = Line(last.task, last.version + 1)
        with self._add(stage, line).open("rb") as file:
            os.fsync(file.fileno())
        return line

    def mark(self, stage: str, last: Line, fingerprint: str, outcome: Outcome, seconds: float) -> None:
        """Declare a task done, after `last` was said on it. Its outputs must be complete on disk."""
        facts = {"seconds": round(seconds, 3), **dataclasses.asdict(outcome)}
        line = Line(last.task, last.version + 1, fingerprint, json.dumps(facts, sort_keys=True).encode())
        self._add(stage, line)

    def compact(self, stage: str) -> None:
        """Merge the parts into all.jsonl; only the driver does this.

        First the parts are renamed, so that whoever still writes begins a new one, then all.jsonl is replaced, then the
        parts go. Ended between any two steps, the same lines are there, some of them twice.
        """
        folder = self.root / stage
        if not self.parts(stage):
            return
        (folder / "summary.json").unlink(missing_ok=True)  # of the all.jsonl that is about to change
        parts = [part.rename(part.with_name(f"part-{uuid.uuid4().hex}.jsonl")) for part in self.parts(stage)]
        state = self.state(stage)
        write_atomic(folder / "all.jsonl", b"".join(_encode(state[task]) for task in sorted(state)))
        for part in parts:
            part.unlink()

    def parts(self, stage: str) -> list[Path]:
        """The files of a stage that all.jsonl may lack something of."""
        return sorted((self.root / stage).glob("part-*.jsonl"))

    def summary(self, stage: str, valid_for: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `summarise` wrote, when nothing was added since and it is about the same things."""
        try:
            kept = json.loads((self.root / stage / "summary.json").read_text())
        except (OSError, ValueError):
            return None
        return kept["facts"] if kept["valid_for"] == valid_for and not self.parts(stage) else None

    def summarise(self, stage: str, valid_for: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Keep a stage's counts, so that nobody has to count again; only the driver does this, after `compact`."""
        kept = {"valid_for": valid_for, "facts": facts}
        write_atomic(self.root / stage / "summary.json", json.dumps(kept, indent=2).encode())

    def _lines(self, stage: str, tasks: Mapping[int, object] | None) -> Iterator[Line]:
        wanted = None if tasks is None else {str(task).encode() for task in tasks}
        for raw in self._read(stage):
            # b'{"task": ' is nine bytes long; most lines are passed over for the price of finding the comma
            if (wanted is None or raw[9 : raw.find(b",", 9)] in wanted) and (found := FRAME.fullmatch(raw)):
                task, version, fingerprint, facts = found.groups()
                yield Line(int(task), int(version), None if fingerprint is None else fingerprint.decode(), facts)

    def _read(self, stage: str) -> Iterator[bytes]:
        """Every line: the parts first, since a part that vanishes meanwhile has gone into all.jsonl."""
        while True:
            try:
                parts = [part.read_bytes() for part in self.parts(stage)]
                break
            except FileNotFoundError:  # the driver has renamed or merged it: look again
                continue
        whole = self.root / stage / "all.jsonl"
        for data in [*parts, whole.read_bytes() if whole.exists() else b""]:
            yield from data.split(b"\n")

    def _add(self, stage: str, line: Line) -> Path:
        path = self.root / stage / f"part-{writer()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, line._asdict() | {"facts": line.entry()})
        return path


def later(a: Line, b: Line) -> Line:
    """The last of two words on one task, in whichever order they are given.

    Two of one version come from two workers that did not know of each other. Done for the same, the outputs are the
    same; done for different things, they are a mixture, and the task is not done.
    """
    if a.version == b.version and a.fingerprint != b.fingerprint:
        return Line(a.task, a.version)
    return max(a, b, key=lambda line: (line.version, line.facts))


def writer() -> str:
    """This process's name among all that write: what its executor calls it, or host and process id.

    Raises ConfigError for a name that is no file name.
    """
    name = os.environ.get(WORKER) or re.sub(r"[^\w.-]", "-", f"{socket.gethostname()}-{os.getpid()}")
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ConfigError(f"{WORKER}={name!r} cannot name a file", where="the environment", fix=f"unset {WORKER}")
    return name


def _encode(line: Line) -> bytes:
    fingerprint = json.dumps(line.fingerprint).encode()
    frame = b'{"task": %d, "version": %d, "fingerprint": %b, "facts": %b}\n'
    return frame % (line.task, line.version, fingerprint, line.facts)
