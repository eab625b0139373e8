"""Cases to look at one by one: pictures beside each other and what is to be said about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Runs = Sequence[tuple[str, bool]]  # pieces of a text in order, and whether each is marked


class Case(NamedTuple):
    """Encoded pictures with captions, and labelled texts, of which some words may be marked."""

    pictures: Sequence[tuple[bytes, str]]
    texts: Sequence[tuple[str, str | Runs]]


def runs(text: str | Runs) -> Runs:
    """A text as pieces: a plain one is one piece without a mark."""
    return [(text, False)] if isinstance(text, str) else text
