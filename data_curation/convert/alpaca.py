"""Alpaca's layout: {"instruction", "input", "output"}, with `image` or `images` where a set has them."""

from __future__ import annotations

from collections.abc import Iterator

from ..text.formats import alpaca_gpt4
from ..text.sample import Row
from .chats import images_of
from .job import Draft, Job, Placed, from_rows
from .rows import text_rows


def samples(job: Job) -> Iterator[Placed]:
    """The rows of the source's files."""
    return from_rows(job, text_rows(job.source), draft)


def draft(row: Row) -> Draft:
    """The instruction and, after a blank line, its input. Raises BadRow."""
    turns = [(message["role"], message["content"]) for message in alpaca_gpt4.convert(row).messages]
    return Draft(turns, images_of(row), row.get("id"))
