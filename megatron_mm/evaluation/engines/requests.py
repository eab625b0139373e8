"""Log-likelihood requests as sequences to be read once: which tokens are asked for, and where. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from megavlm.platform.errors import InputError

Pair = tuple[list[int], list[int]]  # context ids, continuation ids
Scored = tuple[float, bool]  # log-probability, whether greedy decoding says it


@dataclasses.dataclass(frozen=True)
class Reading:
    """A sequence that the model reads, and the continuations that it answers for: (number of the pair, its ids).

    A continuation's last token is predicted and never read. So choices of one token each ("A" to "D") are all answered
    by one reading of their question.
    """

    ids: tuple[int, ...]
    asked: tuple[tuple[int, tuple[int, ...]], ...]

    def wanted(self, start: int = 0) -> list[tuple[int, int]]:
        """(position that predicts it, token) for every token asked for; the sequence begins at `start`."""
        return [
            (start + len(self.ids) - len(tokens) + place, token)
            for _, tokens in self.asked
            for place, token in enumerate(tokens)
        ]


def readings(pairs: Sequence[Pair], most: int) -> list[Reading]:
    """What has to be read for `pairs`, each sequence of at most `most` tokens: a longer context loses its beginning.

    Empty continuations are in none. Raises InputError for a continuation that does not fit, or follows nothing.
    """
    found: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for number, (context, continuation) in enumerate(pairs):
        if not continuation:
            continue
        ids = tuple([*context, *continuation][-(most + 1) :])
        if len(continuation) >= len(ids):
            what = f"a continuation of {len(continuation)} tokens after a context of {len(context)}"
            raise InputError(f"{what}; the model reads {most}", fix="shorten it, and let it follow at least one token")
        found.setdefault(ids[:-1], []).append((number, tuple(continuation)))
    return [Reading(ids, tuple(asked)) for ids, asked in found.items()]


def judged(reading: Reading, rows: Iterable[tuple[float, float]]) -> dict[int, Scored]:
    """Pair's number -> its score, from (log-probability, 1.0 where likeliest) of every token of `wanted`."""
    left = iter(rows)
    found = {}
    for number, tokens in reading.asked:
        own = [next(left) for _ in tokens]
        found[number] = (sum(logprob for logprob, _ in own), all(best for _, best in own))
    return found


def in_order(count: int, found: Mapping[int, Scored]) -> list[Scored]:
    """Scores of all pairs; an empty continuation is certain."""
    return [found.get(number, (0.0, True)) for number in range(count)]
