"""A tolerant scan of a tar that anyone may have written, cut off or tampered with.

Nothing here trusts the tar: sizes are checked against the file before a byte is read, and tarfile's silent stop at a
broken header is told apart from the end of the archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, cast

from ..errors import StorageFault
from ..storage import Url, file_size, open_file
from .sample import BadMember, Sample, is_unsafe, split_name

# What tarfile raises on headers that lie.
_HOSTILE = (tarfile.TarError, ValueError, OSError, OverflowError, MemoryError, RecursionError)

# Members that describe the next one.
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


@dataclass(frozen=True)
class _Reads:
    """An open file whose failing reads are not taken for a damaged archive; seeking to nonsense is its own fault."""

    file: IO[bytes]
    where: str

    def read(self, size: int = -1) -> bytes:
        try:
            return self.file.read(size)
        except OSError as error:
            fix = "mend the disk or the connection and give the same command again"
            raise StorageFault(f"could not be read: {error}", where=self.where, fix=fix) from error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


@dataclass(frozen=True)
class Member:
    """A usable member: where its bytes lie in the tar."""

    key: str
    ext: str
    offset: int
    size: int


def scan_tar(path: Url) -> Iterator[Sample | BadMember]:
    """The samples of a tar in order, with a BadMember for each member left out.

    A sample is a run of members with the same key. A truncated tar keeps every member whose bytes are all there, so the
    last sample may lack fields. Raises InputError when `path` is missing, StorageFault when it cannot be read.
    """
    with open_file(path) as opened:
        size, file = file_size(path), cast("IO[bytes]", _Reads(opened, str(path)))
        yield from _grouped(file, scan_members(file, size))


def scan_members(file: IO[bytes], size: int) -> Iterator[Member | BadMember]:
    """The members of the open tar `file` of `size` bytes, first of each (key, ext) only; reads headers, no data.

    Raises StorageFault when the file cannot be read, which says nothing of the tar.
    """
    names = _Names()
    if not isinstance(file, _Reads):
        file = cast("IO[bytes]", _Reads(file, str(getattr(file, "name", "a tar"))))
    for entry in _entries(file, size):
        if isinstance(entry, BadMember):
            yield entry
        elif not entry.isdir():
            yield names.admit(entry)


@dataclass
class _Names:
    """The rules on names within one tar."""

    key: str = ""
    exts: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def admit(self, entry: tarfile.TarInfo) -> Member | BadMember:
        key, ext = split_name(entry.name)
        if is_unsafe(entry.name):
            return BadMember(entry.name, "unsafe_name")
        # A sparse file's header may claim any size; a link has no bytes of its own.
        if not entry.isreg() or entry.sparse is not None:
            return BadMember(entry.name, "not_a_file", key)
        if not key or not ext:
            return BadMember(entry.name, "no_extension", key)
        if key != self.key:
            self.ended.add(self.key)
            if key in self.ended:
                return BadMember(entry.name, "duplicate_key", key)
            self.key, self.exts = key, set()
        if ext in self.exts:
            return BadMember(entry.name, "duplicate_key", key)
        self.exts.add(ext)
        return Member(key, ext, entry.offset_data, entry.size)


def _grouped(file: IO[bytes], members: Iterable[Member | BadMember]) -> Iterator[Sample | BadMember]:
    sample: Sample | None = None
    for member in members:
        if isinstance(member, BadMember):
            # What cuts the scan short comes after the sample it cut.
            if sample and member.reason in ("truncated_tar", "corrupt_tar"):
                yield sample
                sample = None
            yield member
            continue
        if sample and sample.key != member.key:
            yield sample
            sample = None
        sample = sample or Sample(member.key)
        position = file.tell()
        file.seek(member.offset)
        sample.fields[member.ext] = file.read(member.size)
        file.seek(position)
    if sample:
        yield sample


def _entries(file: IO[bytes], size: int) -> Iterator[tarfile.TarInfo | BadMember]:
    """Every whole member, then one BadMember if the archive does not end as an archive should."""
    if size < tarfile.BLOCKSIZE:
        yield BadMember("", "truncated_tar")
        return
    try:
        archive = tarfile.TarFile(fileobj=file, mode="r")
    except _HOSTILE:
        yield _ending(file, 0, size) or BadMember("", "truncated_tar")
        return
    while (entry := _next(archive)) is not None:
        end = entry.offset_data + entry.size
        if entry.size < 0 or archive.offset <= entry.offset:  # would loop for ever (CVE-2025-8194)
            yield BadMember("", "corrupt_tar")
            return
        if end > size and entry.isreg():
            yield BadMember(entry.name, "truncated_tar", split_name(entry.name)[0])
            return
        yield entry
    ending = _ending(file, archive.offset, size)
    if ending:
        yield ending


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        entry = archive.next()
    except _HOSTILE:
        entry = None
    archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
    return entry


def _ending(file: IO[bytes], offset: int, size: int) -> BadMember | None:
    """What follows the last member: zero blocks (None), nothing more (truncated), or anything else (corrupt)."""
    while offset >= 0:
        file.seek(min(offset, size))
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            return BadMember("", "truncated_tar")
        if not any(block):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError):
            break
        if header.type not in _EXTENDED or header.size < 0:
            break
        # A long name is a member of its own, before the one it names: the cut may lie inside it.
        offset += tarfile.BLOCKSIZE * (1 + -(-header.size // tarfile.BLOCKSIZE))
    return BadMember("", "corrupt_tar")
