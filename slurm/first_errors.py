"""The first error in each log of an attempt: whoever failed first mostly took the others along."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from megavlm.platform.runs import Attempt

from .attempts import node_of

CONTEXT = 3  # lines before an error, and after one that is no traceback
LONGEST = 200  # lines shown of a traceback: its first and its last ones
PREFIX = re.compile(r"^(?:\s*\d+: )?(?:\[[^\]\s]*\]:? ?)*")  # srun --label and torchrun put the rank before a line
TRACEBACK = "Traceback (most recent call last):"
CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
# What processes and libraries say when they die without Python knowing. "Error" alone stands in too many good lines.
FATAL = re.compile(
    r"^\w*(?:Error|Exception)\b.*:|Segmentation fault|core dumped|terminate called|Fatal Python error|CUDA error|"
    r"NCCL (?:error|WARN)|out of memory|Out of memory|OutOfMemory|oom.kill|No space left on device|Disk quota exceeded|"
    r"Bus error|Killed|srun: error|slurmstepd: error|FATAL|\bfatal error\b|command not found|No module named"
)


def first_errors(attempt: Attempt) -> list[dict[str, Any]]:
    """One entry for each log with an error, the earliest first: rank, node, time, log and its lines.

    Logs carry no times: a rank's is that of its `failed` event, else that of the last thing written to its log. What a
    rank told in such an event alone is shown as it stands there.
    """
    events = attempt.events()
    failed = {event["rank"]: event for event in reversed(events) if event["kind"] == "failed"}
    found = []
    for path in sorted(attempt.logs.rglob("*.log")):
        with path.open(errors="replace") as stream:
            lines = first_error(stream)
        if lines:
            rank = _rank(path)
            told = {"rank": rank, "node": node_of(rank, attempt, events), "log": str(path), "lines": lines}
            event = failed.pop(rank, None) if rank is not None else None
            found.append(told | {"time": event["time"] if event else path.stat().st_mtime})
    for rank, event in failed.items():
        lines = [str(event[part]) for part in ("what", "where", "fix") if event.get(part)]
        told = {"rank": rank, "node": node_of(rank, attempt, events), "log": str(attempt.root / "events.jsonl")}
        found.append(told | {"lines": lines, "time": event["time"]})
    return sorted(found, key=lambda error: (error["time"], error["rank"] is None, error["rank"] or 0))


def _rank(path: Path) -> int | None:
    rank = re.fullmatch(r"rank-(\d+)", path.stem)
    return int(rank[1]) if rank else None


def first_error(lines: Iterable[str]) -> list[str]:
    """The first traceback with the exceptions that it led to, or the first fatal line, with what stood before it."""
    rest = (line.rstrip("\n") for line in lines)
    before: list[str] = []
    for line in rest:
        bare = PREFIX.sub("", line)
        if bare.startswith(TRACEBACK):
            return _shortened([*before, line, *_traceback(list(islice(rest, 10_000)))])
        if FATAL.search(bare):
            return [*before, line, *islice(rest, CONTEXT)]
        before = [*before, line][-CONTEXT:]
    return []


def _traceback(lines: Sequence[str]) -> list[str]:
    """What of `lines` still belongs to the traceback they follow on: up to the message of its last exception."""
    end = _message(lines, 0)
    while (again := _chained(lines, end)) is not None:
        end = _message(lines, again)
    return list(lines[:end])


def _message(lines: Sequence[str], start: int) -> int:
    """One past the exception's own line, which is the first that is not indented, and past its notes."""
    bare = [PREFIX.sub("", line) for line in lines[start:]]
    at = next((index for index, line in enumerate(bare) if line and not line[0].isspace()), len(bare) - 1)
    return min(start + at + 1, len(lines))


def _chained(lines: Sequence[str], end: int) -> int | None:
    """Where the next traceback of a chain begins, if one does within a few lines."""
    near = [PREFIX.sub("", line) for line in lines[end : end + 8]]
    joined = next((index for index, line in enumerate(near) if line.startswith(CHAINED)), None)
    if joined is None:
        return None
    begins = next((index for index, line in enumerate(near) if index > joined and line.startswith(TRACEBACK)), None)
    return None if begins is None else end + begins + 1


def _shortened(lines: list[str]) -> list[str]:
    half = LONGEST // 2
    return lines if len(lines) <= LONGEST else [*lines[:half], "...", *lines[-half:]]
