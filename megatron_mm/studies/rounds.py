"""Greedy search over sets: each round adds to the kept set the one candidate that helps most. Loads no torch.

Source: EAGLE (arXiv 2408.15998), figure 4: a round-robin scheme over vision experts, which stops at five because the
sixth makes it worse. What a set is worth is asked of a `Trial`: the same search, whether trainings or a formula answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from .search import Combination, Search

# The score of each combination of a round: None where there is none yet, NaN where there will be none.
Trial = Callable[[Sequence[Combination]], Sequence[float | None]]
Ended = Literal["no gain", "all are in", "rounds are over", "unscored"]


@dataclasses.dataclass(frozen=True)
class Round:
    """What was tried, and what is kept after it. `best`: the score of `kept`, None before there is one."""

    number: int
    scores: Mapping[Combination, float | None]
    kept: Combination
    best: float | None
    ended: Ended | None  # why no round comes after it


def walk(search: Search, trial: Trial) -> Iterator[Round]:
    """Round after round until one is the last.

    The first tries the set to begin with. The best of a round is kept when it is better than what is kept; of equals
    the first in the order of candidates. A round with a score missing decides nothing, and ends it: that score might
    have been the best.
    """
    done: list[Round] = []
    while not done or done[-1].ended is None:
        tried = next_round(search, done)
        done.append(_judge(search, done, dict(zip(tried, trial(tried), strict=True))))
        yield done[-1]


def next_round(search: Search, done: Sequence[Round]) -> list[Combination]:
    """The combinations to try after these rounds, of which none is the last."""
    if not done:
        return [search.ordered(search.given)] if search.given else [(name,) for name in search.names]
    if _opens(search, len(done) + 1):
        alone = sorted(done[0].scores.items(), key=lambda item: -search.rank(item[1]))  # stable: ties in their order
        return [search.ordered([name for (name,), _ in alone[: search.first]])]
    kept = done[-1].kept
    return [search.ordered((*kept, name)) for name in search.names if name not in kept]


def _judge(search: Search, done: Sequence[Round], scores: Mapping[Combination, float | None]) -> Round:
    number, kept, best = len(done) + 1, *((done[-1].kept, done[-1].best) if done else ((), None))
    if None in scores.values():
        return Round(number, scores, kept, best, "unscored")
    ranks = {combination: search.rank(score) for combination, score in scores.items()}
    first = max(ranks, key=lambda combination: ranks[combination])
    given = _opens(search, number)  # the set to begin with is kept, whatever it is worth
    gained = given or ranks[first] > search.rank(best)
    if gained:
        kept, best = first, scores[first]
    return Round(number, scores, kept, best, _ended(search, number, kept, gained))


def _ended(search: Search, number: int, kept: Combination, gained: bool) -> Ended | None:
    if not gained:
        return "no gain"
    if len(kept) == len(search.candidates):
        return "all are in"
    return "rounds are over" if number == search.until else None


def _opens(search: Search, number: int) -> bool:
    """Whether this round tries the set to begin with, and nothing else."""
    return number == 1 if search.given else number == 2 and search.first > 1


def most_trials(search: Search) -> int:
    """How many combinations are tried at most: when every round gains."""
    begun = [1] if search.given else [len(search.candidates), *([1] if search.first > 1 else [])]
    growing = range(len(search.candidates) - search.first, 0, -1)
    return sum([*begun, *growing][: None if search.until == "no_gain" else search.until])
