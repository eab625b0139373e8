"""Damaged files for a reader, in a process of its own that may die or hang without taking the campaign along.

A campaign of this kind is a script with two things: `seeds`, intact files by name, and `judge(data)`, which returns one
word for what the reader made of them (raising, dying and hanging are what is looked for). It ends in

    if __name__ == "__main__":
        sys.exit(campaign(Path(__file__), seeds(), judge, TITLE, COUNT, SEED))

Case k of a seed is always the same bytes: `damaged(seeds, seed, k)`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from megavlm.platform.processes import resident

SILENCE = 30.0  # seconds without an answer after which a case counts as hanging
PACKAGES = ("numpy", "pillow", "simplejpeg", "opencv-python-headless", "pyarrow")
LOST = ("raised", "died", "hung")  # what must not happen

Generator = np.random.Generator
Damage = Callable[[Generator, bytearray], None]


def _span(rng: Generator, data: bytearray) -> slice:
    start = int(rng.integers(len(data)))
    return slice(start, start + int(rng.integers(1, 2 + len(data) // 8)))


def cut(rng: Generator, data: bytearray) -> None:
    """The end is missing."""
    del data[int(rng.integers(len(data))) :]


def flip(rng: Generator, data: bytearray) -> None:
    """Some bits anywhere are turned."""
    for place in rng.integers(len(data), size=rng.integers(1, 33)):
        data[place] ^= 1 << int(rng.integers(8))


def header(rng: Generator, data: bytearray) -> None:
    """Numbers near the start become extreme: sizes, offsets and counts stand there."""
    reach = min(len(data), int(rng.choice([32, 200, 600])))
    for place in rng.integers(reach, size=rng.integers(1, 5)):
        value = rng.choice([b"\0", b"\xff", b"\x7f\xff", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\x80\0\0\0"])
        data[place : place + len(value)] = value


def early(rng: Generator, data: bytearray) -> None:
    """One byte of the first hundred takes any value."""
    data[int(rng.integers(min(len(data), 100)))] = int(rng.integers(256))


def missing(rng: Generator, data: bytearray) -> None:
    """A piece inside is missing."""
    del data[_span(rng, data)]


def blank(rng: Generator, data: bytearray) -> None:
    """A piece is zeros, as in a file whose download was resumed wrongly."""
    span = _span(rng, data)
    data[span] = bytes(len(data[span]))


def repeated(rng: Generator, data: bytearray) -> None:
    """A piece stands there twice."""
    span = _span(rng, data)
    data[span.start : span.start] = data[span]


def noise(rng: Generator, data: bytearray) -> None:
    """A piece is noise."""
    span = _span(rng, data)
    data[span] = rng.bytes(len(data[span]))


DAMAGES: tuple[Damage, ...] = (cut, flip, header, early, missing, blank, repeated, noise)


def damaged(seeds: Mapping[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """Case `number`: what was done to which file, and the bytes. One time in eight two files are spliced as well."""
    rng = np.random.default_rng((seed, number))
    names = list(seeds)
    name, damage = names[number % len(names)], DAMAGES[int(rng.integers(len(DAMAGES)))]
    data = bytearray(seeds[name])
    damage(rng, data)
    if rng.random() < 1 / 8:
        other = seeds[str(rng.choice(names))]
        data += other[int(rng.integers(len(other))) :]
    return f"{name}, {damage.__name__}", bytes(data)


def work(seeds: Mapping[str, bytes], judge: Callable[[bytes], str], seed: int, numbers: Iterable[int]) -> None:
    """Judge cases and print one JSON line for each."""
    for number in numbers:
        name, data = damaged(seeds, seed, number)
        started = time.monotonic()
        try:
            told = {"outcome": judge(data)}
        except Exception as error:
            told = {"outcome": "raised", "detail": f"{type(error).__name__}: {error}"}
        peak = resident()[1] // 2**20
        line = {"case": number, "name": name, **told, "seconds": time.monotonic() - started, "peak_mib": peak}
        print(json.dumps(line), flush=True)


def supervise(script: Path, count: int, seed: int, silence: float = SILENCE) -> list[dict[str, Any]]:
    """The verdicts on cases 0..count-1. A worker that dies or falls silent costs the case it had, and is replaced."""
    told: list[dict[str, Any]] = []
    while len(told) < count:
        words = [sys.executable, str(script), "--worker", str(seed), str(len(told)), str(count)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=_listen, args=(worker, lines), daemon=True).start()
            try:
                while line := lines.get(timeout=silence):
                    told.append(json.loads(line))
                lost = {"outcome": "died", "detail": f"exit code {worker.wait()}"}
            except queue.Empty:
                worker.kill()
                lost = {"outcome": "hung", "detail": f"{silence} s without an answer"}
        if len(told) < count:
            told.append({"case": len(told), "name": "", **lost, "seconds": silence, "peak_mib": 0})
    return told


def _listen(worker: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        lines.put(line)
    lines.put("")


def campaign(
    script: Path, seeds: Mapping[str, bytes], judge: Callable[[bytes], str], title: str, count: int, seed: int
) -> int:
    """The script's main: a table of verdicts beside it, and exit code 3 when a case was lost."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--worker", type=int, nargs=3, metavar=("SEED", "FIRST", "STOP"), help="judge these and tell")
    worker = parser.parse_args().worker
    if worker:
        work(seeds, judge, worker[0], range(*worker[1:]))
        return 0
    started = time.monotonic()
    told = supervise(script, count, seed)
    page = report(script, title, told, seed, time.monotonic() - started)
    script.with_suffix(".md").write_text(page)
    print(page)
    return 3 if any(one["outcome"] in LOST for one in told) else 0


def report(script: Path, title: str, told: list[dict[str, Any]], seed: int, seconds: float) -> str:
    """The page: what was run, how many cases ended how, and every lost one by name."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lost = [one for one in told if one["outcome"] in LOST]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        f"# {title}",
        "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        f"- command: `make campaign NAME={script.stem}`",
        f"- seed: {seed}",
        f"- machine: {os.cpu_count()} cores",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- wall time: {seconds:.0f} s; the slowest file took {max(one['seconds'] for one in told):.1f} s",
        f"- most memory of the process: {max(one['peak_mib'] for one in told)} MiB",
        f"- of {len(told)} files raised, died or hung: {len(lost)} (bound: 0)",
        "",
        "| verdict | files |",
        "|---|---|",
        *(f"| {outcome} | {files} |" for outcome, files in Counter(one["outcome"] for one in told).most_common()),
        *([""] if lost else []),
        *(f"- case {one['case']} ({one['name']}): {one['outcome']}, {one['detail']}" for one in lost),
    ]
    return "\n".join(lines) + "\n"
