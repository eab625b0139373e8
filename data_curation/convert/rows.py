"""The rows of a file, or of every file below a folder, one in memory at a time."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator

from megavlm.platform.errors import InputError
from megavlm.platform.storage import exists, file_size, local_path, open_file

from ..sources.parquet_rows import Lost, batches, open_parquet, rows
from ..sources.tree import File, find_files
from ..text.reading import READERS, read_rows, readable
from ..text.sample import BadRow, Row
from .job import RowOf


def text_rows(source: str) -> Iterator[RowOf]:
    """Of .json, .jsonl and .parquet files, the first two also .gz or .zst."""
    for shard, url in shards_of(source, readable, f"*{', *'.join(READERS)}"):
        for number, row in enumerate(read_rows(url)):
            yield shard, number, row


def parquet_rows(source: str) -> Iterator[RowOf]:
    """Of .parquet files with images inside: few at a time."""
    for shard, url in shards_of(source, lambda name: name.endswith(".parquet"), "*.parquet"):
        for number, row in _held(url):
            yield shard, number, row


def shards_of(source: str, wanted: Callable[[str], bool], endings: str) -> list[tuple[str, str]]:
    """(name, URL) of a source's files; raises InputError when there are none, or two would be called the same."""
    files = files_of(source, wanted, endings)
    names = Counter(shard_name(file.name) for file in files)
    name, times = names.most_common(1)[0]
    if times > 1:
        raise InputError(f"{times} files would be shard '{name}'", where=source, fix="convert them one by one")
    return [(shard_name(file.name), file.url) for file in files]


def files_of(source: str, wanted: Callable[[str], bool], endings: str) -> list[File]:
    """The file `source`, or those below the folder `source`, by name; raises InputError when there are none."""
    if not exists(source):
        raise InputError("no such file or folder", where=source)
    path = local_path(source)
    one = path.is_file() if path is not None else wanted(source)
    if one and wanted(source):
        return [File(source.rstrip("/").rsplit("/", 1)[-1], source, file_size(source), "")]
    found = [] if one else [file for file in find_files(source) if file.inside and wanted(file.name)]
    if not found:
        raise InputError("nothing to convert here", where=source, fix=f"a file, or a folder with files: {endings}")
    return found


def digest_of(source: str) -> str:
    """Tells whether a source is the one it was: the names and sizes of its files."""
    files = files_of(source, lambda name: name.endswith((*READERS, ".tar")), f"*{', *'.join(READERS)}, *.tar")
    told = json.dumps([(file.name, file.size) for file in files])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def shard_name(file: str) -> str:
    """A file's name without its ending, safe in keys: only letters, digits, `_` and `-`, and `--` between folders."""
    suffix = next((suffix for suffix in (*READERS, ".tar") if file.endswith(suffix)), "")
    parts = file.removesuffix(suffix).split("/")
    return "--".join(re.sub(r"\W+", "-", part, flags=re.ASCII) for part in parts)


def _held(url: str) -> Iterator[tuple[int, Row | BadRow]]:
    with open_file(url) as file:
        try:
            parquet = open_parquet(file, url)
        except InputError as error:
            yield 0, BadRow("corrupt_parquet", error.what[:300])
            return
        for piece in batches(parquet, None):
            if isinstance(piece, Lost):
                yield piece.first, BadRow("corrupt_parquet", str(piece)[:300])
                continue
            for number, row in enumerate(rows(piece[1]), start=piece[0]):
                yield number, BadRow("unreadable_row", "a value that Python cannot hold") if row is None else row
