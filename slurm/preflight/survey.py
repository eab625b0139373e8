"""What the hosting node has all of them do, and in which order.

A figure that looks slow is measured again before anyone is accused, by the suspects alone, while all others are idle,
and the best counts: noise passes, a fault stays. So an innocent node is named only if it was slow every single time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .exchange import JOIN_SECONDS, SECONDS
from .fleet import slow
from .meeting import Guest, Message
from .pairs import Pair, rounds_of_pairs

AGAIN = 4  # times that suspects are measured once more
CLOCK_TRIES = 5
CLOCK_SECONDS = 5.0
THREADS = 64
Figures = dict[str, float]
Meet = Callable[[list[Pair]], Mapping[Pair, float | None]]


@dataclasses.dataclass
class Survey:
    """The nodes at the meeting and what is known of them so far: figure -> node -> value."""

    guests: dict[str, Guest]
    worst: float
    figures: dict[str, Figures] = dataclasses.field(default_factory=dict)

    def present(self) -> set[str]:
        """The nodes that still answer."""
        return {node for node, guest in self.guests.items() if not guest.gone}

    def asked(self, requests: Mapping[str, Message], seconds: float) -> dict[str, Message]:
        """What each of these nodes answers, all asked at the same time."""
        with ThreadPoolExecutor(THREADS if len(requests) > THREADS else max(len(requests), 1)) as pool:
            answers = pool.map(lambda node: self.guests[node].ask(requests[node], seconds), requests)
            return dict(zip(requests, answers, strict=True))

    def keep_best(self, figure: str, values: Mapping[str, float | None]) -> None:
        """Take over what is better than what was known."""
        known = self.figures.setdefault(figure, {})
        for node, value in values.items():
            if value is not None:
                known[node] = max(value, known.get(node, 0.0))

    def by_pairs(self, figure: str, meet: Meet) -> None:
        """Every node's best of a few rounds with other partners; who was slow or met nobody meets good nodes again."""
        for pairs in rounds_of_pairs(sorted(self.guests)):
            self._met(figure, meet([pair for pair in pairs if self.present().issuperset(pair)]))
        for _ in range(AGAIN):
            values = self.figures.get(figure, {})
            suspects = sorted(slow(values, self.worst) | (self.present() - values.keys()))
            good = sorted(values.keys() & self.present() - set(suspects), key=lambda node: -values[node])
            if not suspects or not good:
                return
            for start in range(0, len(suspects), len(good)):
                self._met(figure, meet(list(zip(suspects[start:], good, strict=False))))

    def locally(self, figure: str, seconds: float) -> None:
        """What each node measured of itself before it came, measured again by those that look slow."""
        for _ in range(AGAIN):
            if not (suspects := slow(self.figures.get(figure, {}), self.worst)):
                return
            answers = self.asked({node: {"do": "again", "figure": figure} for node in suspects}, seconds)
            self.keep_best(figure, {node: answer.get("value") for node, answer in answers.items()})

    def _met(self, figure: str, rates: Mapping[Pair, float | None]) -> None:
        for pair, rate in rates.items():
            self.keep_best(figure, dict.fromkeys(pair, rate))

    def exchange(self, pairs: list[Pair]) -> dict[Pair, float | None]:
        """Bytes per second of each pair, all at the same time, the slower direction; None where they did not meet."""
        requests: dict[str, Message] = {}
        for one, other in pairs:
            joint = {"do": "exchange", "key": secrets.token_hex(16), "seconds": SECONDS}
            place = {"address": self.guests[other].address, "port": self.guests[other].port}
            requests |= {other: joint, one: joint | place}
        answers = self.asked(requests, 2 * JOIN_SECONDS + SECONDS)
        return {pair: slowest(answers[node].get("rate") for node in pair) for pair in pairs}

    def clocks(self) -> dict[str, dict[str, float]]:
        """Node -> seconds its clock is ahead of this one's, and how far off that may be."""
        return {node: _clock(guest) for node, guest in self.guests.items()}

    def tell(self, further: Mapping[str, Mapping[str, Any]]) -> None:
        """Send everyone its own figures, and that this is the end."""
        for node, guest in self.guests.items():
            own = {figure: values[node] for figure, values in self.figures.items() if node in values}
            with contextlib.suppress(OSError):
                guest.line.send({"do": "end", "figures": own, **further.get(node, {})})


def slowest(rates: Iterable[float | None]) -> float | None:
    """The least of them; None when any is unknown."""
    known = list(rates)
    return None if any(rate is None for rate in known) else min(rate for rate in known if rate is not None)


def _clock(guest: Guest) -> dict[str, float]:
    """The quickest of a few questions: the answer was given half-way, give or take that half."""
    best: dict[str, float] = {}
    for _ in range(CLOCK_TRIES):
        sent = time.time()
        told = guest.ask({"do": "clock"}, CLOCK_SECONDS).get("time")
        came = time.time()
        if told is None:
            break
        if not best or (came - sent) / 2 < best["error"]:
            best = {"seconds": float(told) - (sent + came) / 2, "error": (came - sent) / 2}
    return best
