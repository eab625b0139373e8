"""LLaVA's and ShareGPT's layout: {"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}.

`image` or `images` is a path, a list of paths, or bytes; rows without are text. Variants: the list is `conversation` or
`items`, its turns are {"role", "content"}.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..text.formats.turns import turns_of, without_last_question
from ..text.sample import BadRow, Row
from .job import Draft, Job, Placed, from_rows
from .rows import text_rows

LISTS = ("conversations", "conversation", "items")


def samples(job: Job) -> Iterator[Placed]:
    """The rows of the source's files."""
    return from_rows(job, text_rows(job.source), draft)


def draft(row: Row) -> Draft:
    """A last question without an answer is left out. Raises BadRow."""
    column = next((name for name in LISTS if name in row), LISTS[0])
    entries = row.get(column)
    first = entries[0] if isinstance(entries, list) and entries else {}
    keys = ("role", "content") if isinstance(first, dict) and "role" in first else ("from", "value")
    return Draft(without_last_question(turns_of(row, column, *keys)), images_of(row), row.get("id"))


def images_of(row: Row) -> list[Any]:
    """What the columns `images` or `image` name, in order; raises BadRow image_count when both do, and differ."""
    many, one = row.get("images"), row.get("image")
    if many and one and many != one and many != [one]:
        raise BadRow("image_count", "both `image` and `images`, and they differ")
    found = many or one or []
    return found if isinstance(found, list) else [found]
