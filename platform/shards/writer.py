"""Writing shards: the same samples give the same bytes, and a shard is there whole or not at all."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from contextlib import ExitStack
from io import BytesIO
from types import TracebackType
from typing import IO, Any

from ..errors import ConfigError, InputError
from ..storage import Url, join, open_atomic, remove
from .index import index_url, to_table, write_index
from .sample import is_unsafe, split_name
from .scan import Member


class ShardWriter:
    """Writes PREFIX00000.tar, PREFIX00001.tar, ... with their indexes into `folder` (local or remote).

    Used as a context manager; a shard appears when it is full or the block ends. When the block raises, the unfinished
    shard vanishes and finished ones stay. `shards` lists the finished tars' urls.
    """

    def __init__(self, folder: Url, prefix: str = "", samples_per_shard: int = 1000) -> None:
        if samples_per_shard < 1:
            raise ConfigError(f"samples_per_shard is {samples_per_shard}", fix="at least 1")
        self.folder, self.prefix, self.samples_per_shard = folder, prefix, samples_per_shard
        self.shards: list[str] = []
        self._keys: set[str] = set()
        self._shard: _Shard | None = None

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
            self._shard = _Shard(join(self.folder, f"{self.prefix}{len(self.shards):05d}.tar"))
        self._shard.add(key, encoded)
        self._keys.add(key)
        if self._shard.samples == self.samples_per_shard:
            self._finish()

    def _finish(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.finish()
            self.shards.append(shard.url)

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


class _Shard:
    """The tar being written."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.samples = 0
        self._members: list[Member] = []
        self._stack = ExitStack()
        self._file: IO[bytes] = self._stack.enter_context(open_atomic(url))
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, key: str, fields: Mapping[str, bytes]) -> None:
        for ext, data in fields.items():
            info = tarfile.TarInfo(f"{key}.{ext}")  # mtime, owner and mode are constants: same samples, same bytes
            info.size = len(data)
            self._tar.addfile(info, BytesIO(data))
            blocks = -(-len(data) // tarfile.BLOCKSIZE)
            self._members.append(Member(key, ext, self._file.tell() - blocks * tarfile.BLOCKSIZE, len(data)))
        self.samples += 1

    def finish(self) -> None:
        self._tar.close()
        remove(index_url(self.url))  # an older tar's index must never stand beside this one
        self._stack.close()
        write_index(self.url, to_table(self._members))

    def abandon(self) -> None:
        error = InterruptedError("shard abandoned")
        self._stack.__exit__(type(error), error, None)


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
