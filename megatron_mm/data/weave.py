"""Streams of draws woven into one, so that each keeps its share of any run, in samples or in tokens.

Every draw has a length, 1 or its tokens. A draw of a stream with share w has its middle at (length of the stream's
draws before it + half its own) / w, and the draws of all streams come in the order of these middles. So up to any
moment t each stream has given w * t, to within half a draw, and one of two streams has w of any run, to within a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .items import Items


def weave(streams: Sequence[Iterator[Items]], shares: Sequence[float], unit: str) -> Iterator[Items]:
    """Draws of all streams by `shares`, parts of 1 of "samples" or "tokens", in chunks; ends where the first one ends.

    No stream goes on without the others, for from there on no share would be kept.
    """
    sides = [_Side(stream, share, unit) for stream, share in zip(streams, shares, strict=True)]
    while min(sides, key=lambda side: side.known).more():
        now = min(side.known for side in sides)
        due = [side.until(now) for side in sides]
        order = np.argsort(np.concatenate([middles for middles, _ in due]), kind="stable")
        yield Items.concat([items for _, items in due]).take(order)


class _Side:
    """One stream's draws with their middles."""

    def __init__(self, stream: Iterator[Items], share: float, unit: str) -> None:
        self.known = 0.0  # the last middle that is known; none that comes is before it
        self._stream, self._share, self._unit = stream, share, unit
        self._items, self._middles = Items.empty(), np.zeros(0)
        self._length = 0  # of all draws so far

    def more(self) -> bool:
        """Take the stream's next chunk; False where it has ended."""
        items = next(self._stream, None)
        if items is None:
            return False
        own = items.tokens.astype(np.int64) if self._unit == "tokens" else np.ones(len(items), np.int64)
        ends = self._length + np.cumsum(own)
        # whole numbers until the one division: the order is the same wherever chunks end
        middles = (2 * ends - own) / (2 * self._share)
        self._items, self._middles = Items.concat([self._items, items]), np.concatenate([self._middles, middles])
        self._length = int(ends[-1]) if len(ends) else self._length
        self.known = float(middles[-1]) if len(middles) else self.known
        return True

    def until(self, now: float) -> tuple[np.ndarray, Items]:
        """The draws whose middles come up to `now`, with these middles."""
        count = int(np.searchsorted(self._middles, now, side="right"))
        middles, items = self._middles[:count], self._items[:count]
        self._middles, self._items = self._middles[count:], self._items[count:]
        return middles, items
