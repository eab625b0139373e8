"""The storage seam: every path of the project opens here, local or remote (s3://, gs://, memory://, ... via fsspec)."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec

from .errors import InputError, MegaVLMError, MissingPackage

Url = str | Path


def local_path(url: Url) -> Path | None:
    """`url` as a path of this machine (plain or file://), or None when it is remote."""
    text = os.fspath(url)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if "://" in text else Path(text)


def open_file(url: Url, mode: str = "rb", offset: int | None = None, length: int | None = None) -> IO[Any]:
    """Open `url`; with `offset` or `length` (bytes), a read-only file over exactly that range.

    Raises InputError when it is missing or its protocol unknown, MissingPackage when the protocol's driver is absent.
    """
    if offset is not None or length is not None:
        if mode != "rb":
            raise ValueError(f"a byte range is read with mode 'rb', not '{mode}'")
        return io.BytesIO(_range(url, offset or 0, length))
    path = local_path(url)
    try:
        if path is not None:
            return open(path, mode)
        fs, inner = _remote(url)
        return fs.open(inner, mode)
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(url)) from error


def read_range(url: Url, start: int, length: int) -> bytes:
    """`length` bytes of `url` from byte `start`; raises InputError when the file ends before that."""
    data = _range(url, start, length)
    if len(data) != length:
        raise InputError(f"wanted bytes {start}..{start + length}, got {len(data)} of {length}", where=str(url))
    return data


def exists(url: Url) -> bool:
    """Whether `url` names a file or folder; raises InputError when its storage does not let us look."""
    path = local_path(url)
    if path is not None:
        return path.exists()
    with _looking(url):
        fs, inner = _remote(url)
        return bool(fs.exists(inner))


def file_size(url: Url) -> int:
    """Size of `url` in bytes; raises InputError when it is missing, or its storage does not let us look."""
    path = local_path(url)
    with _looking(url):
        if path is not None:
            return path.stat().st_size
        fs, inner = _remote(url)
        return int(fs.size(inner))


def list_files(url: Url, suffix: str = "") -> list[str]:
    """The files directly in folder `url` whose name ends in `suffix`, sorted, as urls.

    Names that start with a dot are left out: temporary files of `open_atomic` carry one. Raises InputError when the
    folder is missing, or its storage does not let us look.
    """
    path = local_path(url)
    with _looking(url, "no such folder"):
        if path is not None:
            found = [str(entry) for entry in path.iterdir() if entry.is_file()]
        else:
            fs, inner = _remote(url)
            entries = fs.ls(inner, detail=True)
            found = [fs.unstrip_protocol(entry["name"]) for entry in entries if entry["type"] == "file"]
    names = ((name, PurePosixPath(name).name) for name in found)
    return sorted(name for name, base in names if base.endswith(suffix) and not base.startswith("."))


def join(folder: Url, name: str) -> str:
    """`folder`/`name` as a url; `name` may not leave the folder (InputError)."""
    path = local_path(folder)
    if path is not None:
        return str(safe_join(path, name))
    _check_relative(name, folder)
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def make_parent(url: Url) -> None:
    """Create the folder that will hold `url` (object stores have none to create)."""
    path = local_path(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        fs, inner = _remote(url)
        fs.makedirs(fs._parent(inner), exist_ok=True)


def remove(url: Url) -> None:
    """Delete file `url` if it is there."""
    path = local_path(url)
    if path is not None:
        path.unlink(missing_ok=True)
    elif exists(url):
        fs, inner = _remote(url)
        fs.rm_file(inner)


@contextmanager
def open_atomic(url: Url) -> Iterator[IO[bytes]]:
    """A binary file that appears under `url` whole when the block ends, or not at all when it raises.

    Locally: written beside the target, flushed to disk, renamed. Remotely: spooled here, then uploaded in one go.
    """
    make_parent(url)
    target = local_path(url)
    folder, stem = (target.parent, target.name) if target is not None else (None, "upload")
    handle, name = tempfile.mkstemp(prefix=f".{stem[:100]}.", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(name, url, target)
    finally:
        Path(name).unlink(missing_ok=True)


def write_atomic(url: Url, data: bytes) -> None:
    """Write `data` to `url` so that no reader ever sees a part of it; parent folders are made."""
    with open_atomic(url) as file:
        file.write(data)


def safe_join(root: Url, name: str) -> Path:
    """`root`/`name` as a local path; raises InputError when it leaves `root`, through `..` or a link."""
    _check_relative(name, root)
    base = Path(root)
    joined = base / name
    if not joined.resolve().is_relative_to(base.resolve()):
        raise InputError(f"'{name}' leads out of its folder through a link", where=str(root))
    return joined


def _check_relative(name: str, root: Url) -> None:
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or parts[0] == "" or ".." in parts:
        raise InputError(f"'{name}' leads out of its folder", where=str(root), fix="use a relative name without '..'")


def _publish(temporary: str, url: Url, target: Path | None) -> None:
    if target is None:
        fs, inner = _remote(url)
        fs.put_file(temporary, inner)
        return
    mask = os.umask(0)  # the only way to read it; mkstemp made the file 0600, a plain open() would honour the mask
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    os.replace(temporary, target)


def _range(url: Url, start: int, length: int | None) -> bytes:
    path = local_path(url)
    try:
        if path is None:
            fs, inner = _remote(url)
            return bytes(fs.cat_file(inner, start=start, end=None if length is None else start + length))
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(url)) from error


@contextmanager
def _looking(url: Url, missing: str = "no such file") -> Iterator[None]:
    """A remote driver's errors as ours, on one line: each driver has its own, and botocore's are no OSErrors."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(missing, where=str(url)) from error
    except MegaVLMError:
        raise
    except Exception as error:
        if local_path(url) is not None:
            raise
        told = " ".join(f"{type(error).__name__}: {error}".split())
        fix = "check the address, and the credentials and the endpoint in the environment"
        raise InputError(f"the storage does not let us look: {told}", where=str(url), fix=fix) from error


def _remote(url: Url) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(os.fspath(url))
    except ValueError as error:
        raise InputError(f"unknown storage protocol: {error}", where=str(url)) from error
    except ImportError as error:
        raise MissingPackage(f"no driver for this storage: {error}", where=str(url)) from error
