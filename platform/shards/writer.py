"""Writing shards: the same samples give the same bytes, and a shard is there whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tarfile
from collections.abc import Mapping
from contextlib import ExitStack
from io import BytesIO
from types import TracebackType
from typing import IO, Any, cast

from ..errors import ConfigError, InputError
from ..storage import Url, join, open_atomic, remove
from .index import index_url, to_table, write_index
from .sample import is_unsafe, split_name
from .scan import Member


@dataclasses.dataclass(frozen=True)
class Written:
    """A finished shard: its tar's URL, samples, size in bytes and SHA-256, and its index's SHA-256."""

    url: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


class ShardWriter:
    """Writes PREFIX00000.tar, PREFIX00001.tar, ... with their indexes into `folder` (local or remote).

    Used as a context manager; a shard appears when it is full or the block ends. When the block raises, the unfinished
    shard vanishes and finished ones stay. `shards` lists the finished tars' urls, `written` what else is known of them.
    """

    def __init__(self, folder: Url, prefix: str = "", samples_per_shard: int = 1000) -> None:
        if samples_per_shard < 1:
            raise ConfigError(f"samples_per_shard is {samples_per_shard}", fix="at least 1")
        self.folder, self.prefix, self.samples_per_shard = folder, prefix, samples_per_shard
        self.written: list[Written] = []
        self._keys: set[str] = set()
        self._shard: TarShard | None = None

    @property
    def shards(self) -> list[str]:
        """The finished tars."""
        return [shard.url for shard in self.written]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.abandon() if kind else self._finish()

    def write(self, key: str, fields: Mapping[str, Any]) -> None:
        """Add one sample: each field is bytes, str (stored as UTF-8) or anything JSON can hold.

        Raises InputError, before anything is written, for no fields, a key or extension that would not read back as
        itself, or a key written before.
        """
        encoded = {ext: _encoded(value, f"{key}.{ext}") for ext, value in fields.items()}
        self._check(key, encoded)
        if self._shard is None:
            self._shard = TarShard(join(self.folder, f"{self.prefix}{len(self.written):05d}.tar"))
        self._shard.add(key, encoded)
        self._keys.add(key)
        if self._shard.samples == self.samples_per_shard:
            self._finish()

    def _finish(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            self.written.append(shard.finish())

    def _check(self, key: str, fields: Mapping[str, bytes]) -> None:
        if key in self._keys:
            raise InputError(f"key '{key}' was written before", where=str(self.folder), fix="keys are unique")
        if not fields:
            raise InputError(f"sample '{key}' has no fields", where=str(self.folder))
        for ext in fields:
            name = f"{key}.{ext}"
            if split_name(name) != (key, ext) or not key or not ext or is_unsafe(name) or not _storable(name):
                raise InputError(
                    f"sample name '{name}' would not read back as key '{key}' and extension '{ext}'",
                    where=str(self.folder),
                    fix="a relative key without a dot in its last part, an extension in lower case without a slash",
                )


class TarShard:
    """A tar being written, which appears with its index at `finish`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.samples = 0
        self._members: list[Member] = []
        self._stack = ExitStack()
        self._file = _Hashed(self._stack.enter_context(open_atomic(url)))
        self._tar = tarfile.TarFile(fileobj=cast(IO[bytes], self._file), mode="w", format=tarfile.PAX_FORMAT)

    def add(self, key: str, fields: Mapping[str, bytes]) -> None:
        """One sample; its names must have been checked."""
        for ext, data in fields.items():
            info = tarfile.TarInfo(f"{key}.{ext}")  # mtime, owner and mode are constants: same samples, same bytes
            info.size = len(data)
            self._tar.addfile(info, BytesIO(data))
            blocks = -(-len(data) // tarfile.BLOCKSIZE)
            self._members.append(Member(key, ext, self._file.tell() - blocks * tarfile.BLOCKSIZE, len(data)))
        self.samples += 1

    def finish(self) -> Written:
        """Put tar and index in their places."""
        self._tar.close()
        size, digest = self._file.tell(), self._file.sha256.hexdigest()
        remove(index_url(self.url))  # an older tar's index must never stand beside this one
        self._stack.close()
        return Written(self.url, self.samples, size, digest, write_index(self.url, to_table(self._members)))

    def abandon(self) -> None:
        """Leave nothing behind."""
        error = InterruptedError("shard abandoned")
        self._stack.__exit__(type(error), error, None)


class _Hashed:
    """A file that is only ever appended to, and so is hashed as it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


def _encoded(value: Any, name: str) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise InputError(f"field cannot be stored: {error}", where=name, fix="bytes, str, or plain JSON") from error


def _storable(name: str) -> bool:
    """Whether a tar header can hold `name`: valid Unicode without NUL."""
    try:
        return b"\0" not in name.encode("utf-8")
    except UnicodeEncodeError:
        return False
