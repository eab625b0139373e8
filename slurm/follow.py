"""Log files as they grow: those of today's attempt, and of those that come after it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.state import describe

from . import chains, jobs

POLL_SECONDS = 0.5
TAIL_BYTES = 1 << 20  # of a file that is there already, so much is looked at for its last lines
ASK_SECONDS, LAST_WORDS_SECONDS = 15.0, 2.0  # between two questions to the scheduler
OVER = {"finished", "cancelled"}
OVER_BY_HAND = {"failed", "saved", "stopped"}  # a run without jobs: nobody starts it again


def follow(files: Callable[[], list[Path]], run: RunFolder, lines: int, merge: bool) -> Iterator[str]:
    """The last `lines` of each of `files`, then what is added to them, until the run is over.

    `files` is asked again and again: a new attempt brings new ones, told from their beginning.
    """
    growing = {path: Growing(path, lines) for path in _existing(files)}
    shown: Path | None = None
    watch = Watch(run)
    while True:
        over = watch.over()  # looked at first, so that what was written before is still read
        for path in _existing(files):
            growing.setdefault(path, Growing(path))
        for path, file in growing.items():
            for line in file.lines(last=over):
                if not merge and path != shown:
                    yield f"== {path}"
                shown = path
                yield f"{label(path)}: {line}" if merge else line
        if over:
            return
        time.sleep(POLL_SECONDS)


def _existing(files: Callable[[], list[Path]]) -> list[Path]:
    """The files there are; what has not begun yet has none, which is no error to one who waits."""
    try:
        return files()
    except InputError:
        return []


def label(path: Path) -> str:
    """What stands before a line of this file among those of others: "rank 3", else the file's own name."""
    rank = re.fullmatch(r"rank-0*(\d+)", path.stem)
    return f"rank {rank[1]}" if rank else path.stem


class Growing:
    """A file that others write: its new whole lines, at first the last `keep` ones, or all."""

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self._path, self._at, self._keep = path, 0, keep
        if keep is not None and path.exists():
            self._at = max(path.stat().st_size - TAIL_BYTES, 0)

    def lines(self, last: bool = False) -> list[str]:
        """Whole new lines since the last call; when it is the `last` one, a line without an end as well."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data if last else data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        found = whole.decode(errors="replace").splitlines()
        if self._keep is not None:
            found, self._keep = found[-self._keep :] if self._keep else [], None
        return found


class Watch:
    """Whether the run is over: from its files, and where these only say that an attempt is, from its jobs as well."""

    def __init__(self, run: RunFolder) -> None:
        self._run, self._asked, self._alive = run, float("-inf"), True

    def over(self) -> bool:
        """Whether nothing more will come. A job says its last words after the run's files say that it is over."""
        state = describe(self._run)["state"]
        if state == "running":
            return False
        if not jobs.current(self._run):
            return state in OVER | OVER_BY_HAND
        if time.monotonic() - self._asked >= (LAST_WORDS_SECONDS if state in OVER else ASK_SECONDS):
            found = chains.chains(self._run)
            unknown = chains.unreachable(found) is not None and state not in OVER
            self._alive = unknown or any(chain.alive for chain in found)
            self._asked = time.monotonic()
        return not self._alive
