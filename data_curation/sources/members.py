"""Sources without shards of their own: lists of members, written once a run, each of which serves as a shard."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt

from megavlm.platform.errors import InputError
from megavlm.platform.shards import BadMember, Sample
from megavlm.platform.storage import open_file, write_atomic
from megavlm.platform.tables import read_parquet

from ..source import IMAGE_FIELDS, RUN_MARK, Shard
from .base import Source
from .keys import usable_key

TEXT = pa.string()
FIELD = pa.struct({"ext": TEXT, "url": TEXT, "text": TEXT})
SCHEMA = pa.schema(
    {"key": TEXT, "reason": TEXT, "detail": TEXT, "bytes": pa.int64(), "version": TEXT, "fields": pa.list_(FIELD)}
)


@dataclasses.dataclass
class Member:
    """One sample before it is read: each field's bytes lie at a URL, or are a text that is here already.

    `reason` (a BadMember's) says that it cannot be used, `version` tells a changed file.
    """

    key: str
    reason: str | None = None
    detail: str | None = None
    bytes: int = 0
    version: str = ""
    fields: list[dict[str, str | None]] = dataclasses.field(default_factory=list)

    def refer(self, ext: str, url: str) -> None:
        """A field that is read when the sample is."""
        self.fields.append({"ext": ext, "url": url, "text": None})

    def hold(self, ext: str, text: str) -> None:
        """A field that is known."""
        self.fields.append({"ext": ext, "url": None, "text": text.encode("utf-8", "replace").decode()})


class MemberSource(Source):
    """A source that says in which order its members come; consecutive ones make a shard."""

    samples_per_shard: PositiveInt = 1000

    def members(self) -> Iterator[Member]:
        """All samples in a fixed order."""
        raise NotImplementedError

    def find(self, members: Path) -> list[Shard]:
        """Writes the lists, each named after what it holds: a list that changed is another shard."""
        shards: list[Shard] = []
        unique = _unique(self.members())
        while chunk := list(itertools.islice(unique, self.samples_per_shard)):
            name, data = f"{len(shards):05d}", _encoded(chunk)
            file = f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
            write_atomic(members / file, data)
            size = sum(member.bytes for member in chunk)
            shards.append(Shard(name, f"{RUN_MARK}/{members.parent.name}/{members.name}/{file}", size, self))
        if not shards:
            raise self.nothing(f"no samples in '{self.place}'", "curation.source.path=... with images in it")
        _remove_others(members, shards)
        return shards

    def read(
        self, shard: Shard, keys: Collection[str] | None = None, images: bool = True
    ) -> Iterator[Sample | BadMember]:
        """Opens the files of the samples that are asked for, and no others."""
        for row in _rows(shard):
            if row["reason"]:
                yield BadMember(row["detail"] or row["key"], row["reason"], row["key"])
            elif keys is None or row["key"] in keys:
                found = ((field["ext"], _content(field, images)) for field in row["fields"])
                yield Sample(row["key"], {ext: data for ext, data in found if data is not None})


def _content(field: dict[str, str | None], images: bool) -> bytes | None:
    """A field's bytes; None when its file is gone. A file that cannot be reached now is an error, not a bad sample."""
    if field["text"] is not None:
        return field["text"].encode()
    if not images and field["ext"] in IMAGE_FIELDS:
        return b""
    try:
        with open_file(str(field["url"])) as file:
            return bytes(file.read())
    except InputError:
        return None


def _unique(members: Iterable[Member]) -> Iterator[Member]:
    """Keys made usable as names in a tar; of a repeated one the first stays."""
    seen: set[str] = set()
    for member in members:
        key = usable_key(member.key)
        if not member.reason and key in seen:
            yield Member(key, "duplicate_key", member.key)
            continue
        if not member.reason:
            seen.add(key)
        yield dataclasses.replace(member, key=key)


def _encoded(members: list[Member]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([vars(member) for member in members], schema=SCHEMA), buffer)
    return buffer.getvalue()


def _rows(shard: Shard) -> list[dict]:  # type: ignore[type-arg]
    with open_file(shard.url) as file:
        return read_parquet(file.read()).to_pylist()


def _remove_others(folder: Path, shards: Iterable[Shard]) -> None:
    valid = {shard.url.rsplit("/", 1)[-1] for shard in shards}
    for path in folder.glob("*.parquet"):
        if path.name not in valid:
            path.unlink()
