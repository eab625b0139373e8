"""A set's sizes, measured once: shard by shard in many processes, kept in files, and never measured again.

    FOLDER/SET-KEY/  tokens.i32  targets.i32  images.ends.i64  images.3xi16  rejected.jsonl  progress.i64  done

The key stands for all that decides the sizes: the set's contents, tokenizer, template, tiling and tags. Shards are
appended in their order, so that a killed measurement goes on with the shard it came to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from megavlm.platform.errors import InputError
from megavlm.platform.processes import die_with
from megavlm.platform.progress import Progress, progress
from megavlm.platform.shards import ShardReader
from megavlm.platform.storage import write_atomic

from .columns import PIECE, SizesOnDisk
from .measure import Measure, Measured

VERSION = 2  # raised when the same ingredients give other sizes
SYNC_SECONDS = 2.0  # of work, at most, are lost when it is killed
ALONE = 5000  # samples below which starting processes takes longer than measuring

Alive = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class MeasuredSet:
    """The sizes of a set, and the samples that cannot be used."""

    folder: Path
    sizes: SizesOnDisk

    def rejected(self) -> Iterator[dict[str, Any]]:
        """index, key, reason and detail of each."""
        with (self.folder / "rejected.jsonl").open() as lines:
            yield from map(json.loads, lines)


def measured_set(
    name: str, reader: ShardReader, measure: Measure, by: Mapping[str, Any], cache: Path, alive: Alive = lambda: None
) -> MeasuredSet:
    """The sizes of a set from `cache`, where they are measured first if they are not there.

    `by`: what decides them besides the set. `alive` is called while it takes; what it raises ends the work. Raises
    InputError when not one sample is usable.
    """
    words = json.dumps([VERSION, reader.digest, by], sort_keys=True)
    folder = cache / f"{name}-{hashlib.sha256(words.encode()).hexdigest()[:16]}"
    found = MeasuredSet(folder, SizesOnDisk(folder, reader.starts))
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock", alive):
            if not (folder / "done").exists():
                _measure(name, reader, measure, folder, alive)
    _refuse_useless(name, found)
    return found


def _measure(name: str, reader: ShardReader, measure: Measure, folder: Path, alive: Alive) -> None:
    with _Files(folder) as files:
        first = files.shards
        left = len(reader) - int(reader.starts[first])
        bar: Progress[Any] = progress(total=left, label=f"measuring {name}", unit="sample")

        def tick(count: int = 1) -> None:
            bar.advance(count)
            alive()

        with bar:
            for measured in _shards(reader, measure, first, left, tick, alive):
                files.append(measured)
    write_atomic(folder / "done", b"")


def _shards(
    reader: ShardReader, measure: Measure, first: int, left: int, tick: Callable[..., object], alive: Alive
) -> Iterator[Measured]:
    """Shards `first` and on, measured, in their order."""
    jobs = ((reader.tar(k), int(reader.starts[k])) for k in range(first, len(reader.shards)))
    workers = min(len(os.sched_getaffinity(0)), len(reader.shards) - first)
    if workers < 2 or left < ALONE:
        yield from (measure.shard(tar, start, tick) for tar, start in jobs)
        return
    context, parent = multiprocessing.get_context("spawn"), os.getpid()
    with ProcessPoolExecutor(workers, context, die_with, (parent,)) as pool:
        waiting = deque(pool.submit(measure.shard, *job) for job in itertools.islice(jobs, 4 * workers))
        try:
            while waiting:
                measured = _result(waiting.popleft(), alive)
                waiting.extend(pool.submit(measure.shard, *job) for job in itertools.islice(jobs, 1))
                tick(len(measured.tokens))
                yield measured
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[Measured], alive: Alive) -> Measured:
    while True:
        try:
            return future.result(timeout=1.0)
        except TimeoutError:
            alive()


class _Files:
    """The columns being written, and how far each of them goes for sure."""

    def __init__(self, folder: Path) -> None:
        names = [*(name for name, _ in SizesOnDisk.FILES), "rejected.jsonl"]
        self._progress = folder / "progress.i64"
        sure = self._sure(folder, names)
        self.shards = int(sure[0])
        self._files = [(folder / name).open("ab") for name in names]
        for file, length in zip(self._files, sure[1:].tolist(), strict=True):
            file.truncate(length)
        self._images = int(sure[4]) // SizesOnDisk.FILES[3][1].itemsize
        self._synced = time.monotonic()

    def _sure(self, folder: Path, names: list[str]) -> np.ndarray:
        """(shards, bytes of each file) that the last mark vouches for; nothing where a file is shorter than that."""
        mark = np.fromfile(self._progress, "<i8") if self._progress.exists() else np.zeros(0, np.int64)
        sizes = [path.stat().st_size if (path := folder / name).exists() else 0 for name in names]
        if len(mark) != 1 + len(names) or (np.array(sizes) < mark[1:]).any():
            return np.zeros(1 + len(names), np.int64)
        return mark

    def append(self, measured: Measured) -> None:
        """One more shard."""
        ends = self._images + measured.images.offsets[1:]
        lines = [json.dumps(dataclasses.asdict(line)) + "\n" for line in measured.rejected]
        columns = (measured.tokens, measured.targets, ends, measured.images.values)
        for file, column, (_, dtype) in zip(self._files, columns, SizesOnDisk.FILES, strict=False):
            file.write(column.astype(dtype.base, copy=False).tobytes())
        self._files[-1].write("".join(lines).encode())
        self._images += len(measured.images.values)
        self.shards += 1
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        write_atomic(self._progress, np.array([self.shards, *(file.tell() for file in self._files)], "<i8").tobytes())
        self._synced = time.monotonic()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *error: object) -> None:
        self._sync()
        for file in self._files:
            file.close()


@contextlib.contextmanager
def _locked(path: Path, alive: Alive) -> Iterator[None]:
    """Only one process measures a set into a folder; the others wait for it."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                alive()
                time.sleep(0.5)
            except OSError as error:
                if error.errno not in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:  # no locks on this file system
                    raise
                break
        yield


def _refuse_useless(name: str, measured: MeasuredSet) -> None:
    total = int(measured.sizes.starts[-1])
    if any(measured.sizes.tokens(at, min(at + PIECE, total)).any() for at in range(0, total, PIECE)):
        return
    first = next(measured.rejected())
    raise InputError(
        f"data set '{name}' holds no usable sample; the first, '{first['key']}': {first['reason']}",
        where=f"data.sets.{name}",
        fix=first["detail"],
    )
