"""Blanks the machine code of every GPU but one in a library that nvcc linked, so that it compresses to a twentieth.

A fat binary (section .nv_fatbin) is a run of containers, each a header and then one entry per architecture: cubins and
PTX. Blanked entries keep their size and header, so that no offset in the file moves and the driver skips them as code
for another GPU. The layouts are those of fatbinary_section.h and of ELF64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
CONTAINER = struct.Struct("<IHHQ")  # magic, version, header's size, size of all entries
ENTRY = struct.Struct("<HHIQ")  # kind (1 PTX, 2 cubin), attributes, header's size, payload's size
ARCHITECTURE_AT = 28  # in an entry's header: 90 for sm_90
ELF_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, ...


def keep_one(source: Path, target: Path, architecture: int) -> tuple[int, int]:
    """Write `source` with only the code of `architecture`; returns the bytes of code kept and blanked.

    Raises ValueError where there is no such code, or the file is laid out otherwise.
    """
    data = bytearray(source.read_bytes())
    kept = blanked = 0
    for start, stop in list(_fat_sections(data)):
        for place, size, of in list(_entries(data, start, stop)):
            if of == architecture:
                kept += size
            else:
                data[place : place + size] = bytes(size)
                blanked += size
    if not kept:
        raise ValueError(f"{source.name} has no code for sm_{architecture}")
    target.write_bytes(data)
    return kept, blanked


def _fat_sections(data: bytearray) -> Iterator[tuple[int, int]]:
    if data[:5] != b"\x7fELF\x02":
        raise ValueError("not an ELF64 file")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [ELF_SECTION.unpack_from(data, table + k * size) for k in range(count)]
    for name, _, _, _, offset, length, *_ in sections:
        start = sections[names][4] + name
        if data[start : data.index(0, start)] == b".nv_fatbin":
            yield offset, offset + length


def _entries(data: bytearray, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Place, size and architecture of every payload."""
    at = data.find(MAGIC, start, stop)
    while at >= 0:
        _, _, header, size = CONTAINER.unpack_from(data, at)
        at += header
        end = at + size
        while at < end:
            kind, _, header, size = ENTRY.unpack_from(data, at)
            if kind not in (1, 2):
                raise ValueError(f"a fat binary's entry of unknown kind {kind} at {at:#x}")
            (architecture,) = struct.unpack_from("<I", data, at + ARCHITECTURE_AT)
            yield at + header, size, architecture
            at += header + size
        at = data.find(MAGIC, end, stop)
