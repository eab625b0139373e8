"""Every file below a folder, local or remote, with what tells a changed one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from megavlm.platform.errors import InputError, MissingPackage
from megavlm.platform.storage import local_path

# How object stores name the version of an object, in fsspec's words; a store that has none is told by size alone.
VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "mtime")


@dataclasses.dataclass(frozen=True)
class File:
    """`name` is relative to the folder, with slashes; `size` is in bytes; `inside` says that no link leads it out."""

    name: str
    url: str
    size: int
    version: str
    inside: bool = True


def find_files(folder: str) -> list[File]:
    """All files below a folder, by name; names that start with a dot are left out, folders behind links not entered.

    Raises InputError when the folder is missing.
    """
    path = local_path(folder)
    if path is None:
        return sorted(_remote(folder), key=lambda file: file.name)
    if not path.is_dir():
        raise InputError("no such folder", where=folder, fix="curation.source.path=FOLDER")
    return sorted(_local(path), key=lambda file: file.name)


def _local(root: Path) -> Iterator[File]:
    whole = root.resolve()
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not path.is_file():
                continue
            facts = path.stat()
            inside = not path.is_symlink() or path.resolve().is_relative_to(whole)
            yield File(path.relative_to(root).as_posix(), str(path), facts.st_size, str(facts.st_mtime_ns), inside)


def _remote(folder: str) -> Iterator[File]:
    try:
        fs, root = fsspec.core.url_to_fs(folder)
        found: dict[str, dict[str, Any]] = fs.find(root, detail=True)
    except ImportError as error:
        raise MissingPackage(f"no driver for this storage: {error}", where=folder) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot list this folder: {error}", where=folder) from error
    if not found:
        raise InputError("no such folder", where=folder, fix="curation.source.path=FOLDER")
    for path, facts in found.items():
        name = path.removeprefix(root).lstrip("/")
        if name and not any(part.startswith(".") for part in name.split("/")):
            version = next((str(facts[key]) for key in VERSIONS if facts.get(key)), "")
            yield File(name, fs.unstrip_protocol(path), int(facts["size"] or 0), version)
