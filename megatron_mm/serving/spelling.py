"""Tokens to text as they come: what is certain is told, and texts that end an answer are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character yet


class Spelling:
    """An answer's text so far; `stopped` when one of `stops` turned up, from which on nothing is told.

    `decode` makes text of token ids.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, stops
        self._ids: list[int] = []
        self._told = 0  # characters
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now and was not before: no half character, no beginning of a stop."""
        self._ids.append(token)
        text = self._decode(self._ids)
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._tell(text[: min(found)])
        whole = text.rstrip(BROKEN)
        return self._tell(whole[: self._certain(whole)])

    def end(self) -> str:
        """The rest, when no more tokens come."""
        return "" if self.stopped else self._tell(self._decode(self._ids))

    def _certain(self, text: str) -> int:
        """How many characters no stop can begin in."""
        longest = max(map(len, self._stops), default=1) - 1
        for place in range(max(0, len(text) - longest), len(text)):
            if any(stop.startswith(text[place:]) for stop in self._stops):
                return place
        return len(text)

    def _tell(self, text: str) -> str:
        new, self._told = text[self._told :], max(self._told, len(text))
        return new
