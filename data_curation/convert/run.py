"""Writing what a conversion gives: whole shards, the rows that gave nothing with their reasons, and how far it got."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from megavlm.platform.errors import InputError
from megavlm.platform.shards import ShardWriter
from megavlm.platform.storage import write_atomic

from ..text.sample import BadRow
from . import CONVERSIONS
from .job import Job, Placed
from .rows import digest_of

STATE, REJECTED = "convert.json", "rejected.jsonl"


@dataclasses.dataclass
class State:
    """How far a conversion got. It is written after every shard, and says nothing of an unfinished one."""

    job: dict[str, Any]
    rows: int = 0
    samples: int = 0
    images: int = 0
    shards: int = 0
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)  # by reason
    bytes_of_rejected: int = 0
    finished: bool = False


def convert(job: Job, out: Path, samples_per_shard: int, limit: int | None, tick: Callable[[int], object]) -> State:
    """Convert into the folder `out`, or go on where an earlier attempt stopped; `tick(rows)` as rows are done.

    Writes NNNNNN-00000.tar with its index, rejected.jsonl (shard, row, reason, detail) and convert.json. Raises
    InputError when `out` holds something else, or when not one row gave a sample.
    """
    told = {**dataclasses.asdict(job), "samples_per_shard": samples_per_shard, "limit": limit}
    told["files"] = digest_of(job.source)
    state = opened(out, {name: value for name, value in told.items() if name != "skip"})
    if not state.finished:
        placed = CONVERSIONS.load(job.kind)(dataclasses.replace(job, skip=state.rows))
        with _rejections(out, state) as rejected:
            _write(_after(placed, state.rows, limit, tick), out, samples_per_shard, state, rejected)
    if not state.samples:
        raise InputError(f"not one of {state.rows} rows gave a sample", where=job.source, fix=_most(state, out))
    return state


def opened(out: Path, job: dict[str, Any]) -> State:
    """The state of an earlier attempt at the same, or a new one; raises InputError when `out` is in use."""
    path = out / STATE
    if not path.exists():
        if out.exists() and any(out.glob("*.tar")):
            raise InputError("the folder holds other shards", where=str(out), fix="convert into a new folder")
        return State(job)
    state = State(**json.loads(path.read_bytes()))
    for name, value in job.items():
        if state.job.get(name) != value:
            what = f"the folder holds another conversion: {name} was {state.job.get(name)!r} and is {value!r}"
            raise InputError(what, where=str(out), fix="convert into a new folder")
    return state


def _after(placed: Iterator[Placed], done: int, limit: int | None, tick: Callable[[int], object]) -> Iterator[Placed]:
    for number, one in enumerate(placed):
        if limit is not None and number >= limit:
            return
        if number >= done:
            tick(1)
            yield one


def _write(placed: Iterator[Placed], out: Path, size: int, state: State, rejected: IO[bytes]) -> None:
    """One writer per shard: none holds more keys than a shard's."""
    while not state.finished:
        with ShardWriter(out, prefix=f"{state.shards:06d}-", samples_per_shard=size) as writer:
            state.finished = not _fill(writer, placed, size, state, rejected)
        rejected.flush()
        os.fsync(rejected.fileno())
        state.bytes_of_rejected = rejected.tell()
        state.shards += len(writer.shards)
        write_atomic(out / STATE, json.dumps(dataclasses.asdict(state), indent=1).encode())


def _fill(writer: ShardWriter, placed: Iterator[Placed], size: int, state: State, rejected: IO[bytes]) -> bool:
    """Write one shard's samples; False when the source ended."""
    written = 0
    for one in placed:
        state.rows += 1
        content, key = one.content, f"{one.shard}-{one.row:08d}"
        images = content if isinstance(content, BadRow) else _stored(writer, key, content)
        if isinstance(images, BadRow):
            rejected.write(_line(one, images))
            state.rejected[images.reason] = state.rejected.get(images.reason, 0) + 1
        else:
            state.samples, state.images, written = state.samples + 1, state.images + images, written + 1
        if written == size:
            return True
    return False


def _stored(writer: ShardWriter, key: str, fields: dict[str, Any]) -> int | BadRow:
    """The number of images written, or what keeps the sample out of a shard, such as a number that JSON has not."""
    try:
        writer.write(key, fields)
    except InputError as error:
        return BadRow("not_storable", error.what)
    return sum(name not in ("json", "txt") for name in fields)


def _line(one: Placed, bad: BadRow) -> bytes:
    line = {"shard": one.shard, "row": one.row, "reason": bad.reason, "detail": bad.detail}
    return json.dumps(line).encode() + b"\n"  # ASCII: a detail may quote what is no Unicode


@contextlib.contextmanager
def _rejections(out: Path, state: State) -> Iterator[IO[bytes]]:
    """The file of rejected rows, without those after the last whole shard; what a kill left half-written goes."""
    out.mkdir(parents=True, exist_ok=True)
    for name in os.listdir(out):
        if name.startswith(".") and name.endswith(".tmp"):  # as `open_atomic` calls them
            (out / name).unlink()
    with open(out / REJECTED, "ab") as file:
        file.truncate(state.bytes_of_rejected)
        file.seek(0, os.SEEK_END)
        yield file


def _most(state: State, out: Path) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(state.rejected).most_common(3))
    return f"{reasons or 'the source is empty'}; see {out / REJECTED}"
