"""A command's wall time and the memory of all its processes, as the kernel tells them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megavlm.platform.processes import resident

LOOK_SECONDS = 0.05


class Measured(NamedTuple):
    """What a verb told in JSON, and what it took: seconds, and bytes of its largest process and of all at one time."""

    told: dict[str, Any]
    seconds: float
    largest: int
    together: int


def verb(words: Sequence[str]) -> Measured:
    """`megavlm WORDS --json` in a process of its own; raises CalledProcessError. What it writes to stderr passes."""
    started, largest, together = time.monotonic(), 0, 0
    command = [sys.executable, "-m", "megavlm.platform.cli", *words, "--json"]
    print("$ megavlm", *words, file=sys.stderr, flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            now = [resident(one) for one in family(process.pid)]
            together = max(together, sum(rss for rss, _ in now))
            largest = max(largest, *(peak for _, peak in now), 0)
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - started
        assert process.stdout is not None
        out = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Measured(json.loads(out), seconds, largest, together)


def family(process: int) -> Iterator[int]:
    """A process and all below it."""
    yield process
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:  # it has ended
            continue
        for child in children:
            yield from family(int(child))


def disk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(os.lstat(path).st_size for path in folder.rglob("*") if path.is_file())
