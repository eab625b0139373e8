"""Records of a JSON list or of JSON lines, read one at a time however large the file is."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import IO

CHUNK = 1 << 16  # characters; what is left of a piece is copied for every record in it
LONGEST = 1 << 26  # characters; a longer record is taken for damage, which would otherwise be read to the file's end

Record = tuple[object, str | None]  # the value, or what is wrong


def json_records(file: IO[bytes]) -> Iterator[Record]:
    """Every record in order. A bad line costs itself; a bad place in a list ends it: nothing tells what follows."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace")
    start = text.read(CHUNK)
    while start.isspace() and (more := text.read(CHUNK)):
        start = start.lstrip() + more
    if start.lstrip().startswith("["):
        yield from _of_list(text, start.lstrip()[1:])
    else:
        yield from _of_lines(text, start)


def _of_lines(text: IO[str], held: str) -> Iterator[Record]:
    more = held
    while more:
        more = text.read(CHUNK)
        *lines, held = (held + more).split("\n")
        yield from (_parsed(line) for line in (lines if more else [*lines, held]) if line.strip())


def _parsed(line: str) -> Record:
    try:
        return json.loads(line), None
    except (ValueError, RecursionError) as error:
        return None, f"{type(error).__name__}: {error}"


def _of_list(text: IO[str], held: str) -> Iterator[Record]:
    want = CHUNK
    while not (held := held.lstrip(" \t\r\n,")).startswith("]"):
        value, rest, wrong = _first(held)
        if wrong is None:
            yield value, None
            held, want = rest, CHUNK
            continue
        more = text.read(want) if len(held) < LONGEST else ""
        if not more:
            yield None, f"the list ends in damage: {wrong}"
            return
        # Twice as much each time, or a long record would be tried once for every piece of it.
        held, want = held + more, max(CHUNK, len(held))


def _first(held: str) -> tuple[object, str, str | None]:
    """The first value, what follows it, and what is wrong: a value counts when a comma or the end comes next."""
    try:
        value, end = json.JSONDecoder().raw_decode(held)
    except (ValueError, RecursionError) as error:
        return None, held, f"{type(error).__name__}: {error}"
    rest = held[end:].lstrip()
    return value, rest, None if rest.startswith((",", "]")) else "no comma and no end after a record"
