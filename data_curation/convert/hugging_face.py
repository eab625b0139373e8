"""Parquet files with the images inside, as Hugging Face's `datasets` writes them; which layout is told by the columns.

`messages`, `conversations`, `texts` (the Cauldron's [{"user", "assistant"}]), `instruction`, or a caption.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..sources.captions_file import CAPTION_COLUMNS
from ..text.sample import BadRow, Row
from . import alpaca, chats, messages
from .job import Draft, Job, Placed, from_rows
from .rows import parquet_rows


def samples(job: Job) -> Iterator[Placed]:
    """The rows of the source's files."""
    return from_rows(job, parquet_rows(job.source), draft)


def draft(row: Row) -> Draft:
    """By the first column that names a layout; raises BadRow missing_column when none does."""
    convert = next((layout for column, layout in LAYOUTS.items() if row.get(column) is not None), None)
    if convert is None:
        raise BadRow("missing_column", f"none of {', '.join(LAYOUTS)} (columns: {', '.join(map(str, row))})"[:300])
    return convert(_with_images(row))


def _with_images(row: Row) -> Row:
    """With the first column of image bytes as `image`, where no column is called so."""
    if row.get("images") or row.get("image"):
        return row
    found = next((value for value in row.values() if _is_image(value)), None)
    return {**row, "image": found}


def _is_image(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def _pairs(row: Row) -> Draft:
    pairs = row["texts"]
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise BadRow("missing_column", "column 'texts' is no list of {user, assistant}")
    sides = [(role, pair.get(role)) for pair in pairs for role in ("user", "assistant")]
    if not all(isinstance(text, str) for _, text in sides):
        raise BadRow("not_a_turn", "an entry of 'texts' lacks user or assistant")
    return Draft([(role, str(text)) for role, text in sides], chats.images_of(row), row.get("id"))


def _caption(row: Row) -> Draft:
    caption = next(row[name] for name in CAPTION_COLUMNS if row.get(name) is not None)
    if not isinstance(caption, str):
        raise BadRow("no_caption", f"the caption is a {type(caption).__name__}")
    return Draft([], chats.images_of(row), row.get("id"), caption=caption)


LAYOUTS = {
    "messages": messages.draft,
    **dict.fromkeys(chats.LISTS, chats.draft),
    "texts": _pairs,
    "instruction": alpaca.draft,
    **dict.fromkeys(CAPTION_COLUMNS, _caption),
}
