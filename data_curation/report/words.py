"""Where in a text the words stand that decontamination found."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..text.words import words_of

CONTEXT = 240  # characters shown on either side
Runs = list[tuple[str, bool]]


def marked(text: str, ngram: str) -> Runs:
    """The text in pieces, of which the one with the words of `ngram` is marked; none where they do not stand there.

    Words are decontamination's: lower case, without punctuation.
    """
    placed = [(word, found.span()) for found in re.finditer(r"\S+", text) for word in words_of(found[0])]
    words, wanted = [word for word, _ in placed], ngram.split()
    place = _find(words, wanted)
    if place is None:
        return [(text, False)]
    start, end = placed[place][1][0], placed[place + len(wanted) - 1][1][1]
    return [(text[:start], False), (text[start:end], True), (text[end:], False)]


def around(runs: Runs) -> Runs:
    """The marked piece with CONTEXT characters before and after it."""
    place = next(place for place, (_, mark) in enumerate(runs) if mark)
    before, after = "".join(text for text, _ in runs[:place]), "".join(text for text, _ in runs[place + 1 :])
    left = before if len(before) <= CONTEXT else "… " + before[-CONTEXT:]
    right = after if len(after) <= CONTEXT else after[:CONTEXT] + " …"
    return [(left, False), runs[place], (right, False)]


def _find(words: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Where the run of words begins."""
    ends = range(len(words) - len(wanted) + 1) if wanted else ()
    return next((place for place in ends if words[place : place + len(wanted)] == list(wanted)), None)
