"""Records of a JSON list or of JSON lines, read one at a time however large the file is."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import IO

CHUNK = 1 << 20  # characters
LONGEST = 1 << 26  # characters; a longer record is taken for damage, which would otherwise be read to the file's end

Record = tuple[object, str | None]  # the value, or what is wrong


def json_records(file: IO[bytes]) -> Iterator[Record]:
    """Every record in order. A bad line costs itself; a bad place in a list ends it: nothing tells what follows."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace")
    start = text.read(CHUNK)
    if start.lstrip().startswith("["):
        yield from _of_list(text, start.lstrip()[1:])
    else:
        yield from _of_lines(text, start)


def _of_lines(text: IO[str], held: str) -> Iterator[Record]:
    while held:
        more = text.read(CHUNK)
        *lines, held = (held + more).split("\n")
        if not more:
            lines, held = [*lines, held], ""
        yield from (_parsed(line) for line in lines if line.strip())


def _parsed(line: str) -> Record:
    try:
        return json.loads(line), None
    except (ValueError, RecursionError) as error:
        return None, f"{type(error).__name__}: {error}"


def _of_list(text: IO[str], held: str) -> Iterator[Record]:
    decoder, want = json.JSONDecoder(), CHUNK
    while True:
        held = held.lstrip(" \t\r\n,")
        if held.startswith("]"):
            return
        try:
            value, end = decoder.raw_decode(held)
            if end == len(held) and (more := text.read(want)):  # a number may go on
                held += more
                continue
        except (ValueError, RecursionError) as error:
            more = text.read(want) if len(held) < LONGEST else ""
            if not more:
                yield None, f"the list ends in damage: {type(error).__name__}: {error}"
                return
            # Twice as much each time, or a long record would be tried once for every piece of it.
            held, want = held + more, max(CHUNK, len(held))
            continue
        yield value, None
        held, want = held[end:], CHUNK
