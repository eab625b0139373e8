"""The greedy search against a plain statement of it and the paper's own figures; formulas stand for trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.studies.outlook import reachable
from megavlm.megatron_mm.studies.rounds import Round, Trial, most_trials, walk
from megavlm.megatron_mm.studies.schema import Study
from megavlm.megatron_mm.studies.search import Combination, Search
from megavlm.platform.errors import ConfigError

EXPERTS = ["clip", "convnext", "dinov2", "sam", "eva", "pix2struct"]
# EAGLE, figure 4 (sets of two and more) and tables 2 and 3 (one expert, unfrozen): the mean of eleven benchmarks.
FIGURE_4 = {
    "clip": 670.5, "convnext": 682.1, "dinov2": 537.3, "sam": 510.5, "eva": 639.1, "pix2struct": 606.2,
    "clip convnext": 681.5,
    "clip convnext dinov2": 685.4, "clip convnext sam": 690.4,
    "clip convnext pix2struct": 685.1, "clip convnext eva": 690.7,
    "clip convnext dinov2 eva": 688.0, "clip convnext sam eva": 689.4, "clip convnext eva pix2struct": 694.6,
    "clip convnext dinov2 eva pix2struct": 684.7, "clip convnext sam eva pix2struct": 697.1,
    "clip convnext dinov2 sam eva pix2struct": 686.8,
}  # fmt: skip


def search(**keys: Any) -> Search:
    found: Search = Search.parse({"over": "model.encoder.use", "candidates": EXPERTS, "score": "avg"} | keys)
    return found


def published(combinations: Sequence[Combination]) -> list[float | None]:
    return [FIGURE_4[" ".join(names)] for names in combinations]


@pytest.mark.parametrize(("start", "opening"), [(["clip", "convnext"], [1]), (["convnext", "clip"], [1]), (2, [6, 1])])
def test_the_published_scores_give_the_published_set(start: Any, opening: list[int]) -> None:
    rounds = list(walk(search(start=start), published))
    assert [len(one.scores) for one in rounds] == [*opening, 4, 3, 2, 1]
    assert [one.best for one in rounds[-5:]] == [681.5, 690.7, 694.6, 697.1, 697.1]
    assert rounds[-1].kept == ("clip", "convnext", "sam", "eva", "pix2struct")  # X5: all six are worse
    assert [one.ended for one in rounds] == [None] * (len(rounds) - 1) + ["no gain"]
    assert list(rounds[-4].scores)[0] == ("clip", "convnext", "dinov2")


def test_one_to_begin_with_is_the_best_alone_and_may_stay_so() -> None:
    rounds = list(walk(search(start=1, candidates=["clip", "convnext"]), published))
    assert [(one.kept, one.ended) for one in rounds] == [(("convnext",), None), (("convnext",), "no gain")]


def test_so_many_rounds_and_no_more() -> None:
    rounds = list(walk(search(start=["clip", "convnext"], until=3), published))
    assert (rounds[-1].kept, rounds[-1].ended) == (("clip", "convnext", "eva", "pix2struct"), "rounds are over")


def plain(names: list[str], value: dict[frozenset[str], float], lower: bool) -> frozenset[str]:
    """Greedy from the best one, stated with sets and nothing else."""
    sign = -1 if lower else 1
    kept: frozenset[str] = frozenset()
    while len(kept) < len(names):
        grown = [kept | {name} for name in names if name not in kept]
        best = grown[0]
        for other in grown[1:]:
            best = other if sign * value[other] > sign * value[best] else best
        if kept and sign * value[best] <= sign * value[kept]:
            return kept
        kept = best
    return kept


VALUES = st.lists(st.integers(0, 6), min_size=31, max_size=31)  # few values: many ties


def valued(numbers: list[int]) -> tuple[list[str], dict[frozenset[str], float]]:
    names = list("abcde")
    sets = [frozenset(name for k, name in enumerate(names) if mask >> k & 1) for mask in range(1, 32)]
    return names, dict(zip(sets, map(float, numbers), strict=True))


@given(VALUES, st.booleans())
def test_it_is_greedy_and_finds_the_same_twice(numbers: list[int], lower: bool) -> None:
    names, value = valued(numbers)
    spec = search(candidates=names, better="lower" if lower else "higher")
    once, twice = (list(walk(spec, lambda of: [value[frozenset(names)] for names in of])) for _ in range(2))
    assert once == twice
    assert frozenset(once[-1].kept) == plain(names, value, lower)
    assert sum(len(one.scores) for one in once) <= most_trials(spec)
    assert {names for one in once for names in one.scores} <= set(reachable(spec))


@given(VALUES, st.integers(1, 3), st.data())
def test_broken_off_anywhere_it_comes_to_the_same_set(numbers: list[int], start: int, data: Any) -> None:
    names, value = valued(numbers)
    spec = search(candidates=names, start=start)
    whole = list(walk(spec, lambda of: [value[frozenset(names)] for names in of]))
    known: dict[Combination, float] = {}

    def trial(more: int) -> Trial:
        """Scores what is known, and trains at most `more` others."""

        def tried(combinations: Sequence[Combination]) -> list[float | None]:
            for one in [names for names in combinations if names not in known][: more - len(known)]:
                known[one] = value[frozenset(one)]
            return [known.get(names) for names in combinations]

        return tried

    stopped = list(walk(spec, trial(data.draw(st.integers(0, 15)))))
    assert stopped[-1].ended == whole[-1].ended or stopped[-1].ended == "unscored"
    assert stopped[:-1] == whole[: len(stopped) - 1]
    assert list(walk(spec, trial(99))) == whole
    assert len(known) == sum(len(one.scores) for one in whole), "nothing is trained that was not asked for"


@pytest.mark.parametrize(
    ("keys", "most"),
    [
        ({"start": ["clip", "convnext"]}, 1 + 4 + 3 + 2 + 1),
        ({"start": 2}, 6 + 1 + 4 + 3 + 2 + 1),
        ({"start": 1}, 6 + 5 + 4 + 3 + 2 + 1),
        ({"start": ["clip", "convnext"], "until": 3}, 1 + 4 + 3),
        ({"start": EXPERTS}, 1),
    ],
)
def test_where_all_gain_all_are_tried_that_may_be(keys: dict[str, Any], most: int) -> None:
    spec = search(**keys)
    rounds = list(walk(spec, lambda of: [float(len(names)) for names in of]))
    assert sum(len(one.scores) for one in rounds) == most == most_trials(spec)
    assert rounds[-1].ended == ("rounds are over" if "until" in keys else "all are in")


def test_what_has_no_score_is_never_kept_and_stops_nothing() -> None:
    """A training that diverged has ended, without a loss."""
    loss = {
        ("a",): math.nan,
        ("b",): 3.0,
        ("c",): 4.0,
        ("a", "b"): math.nan,
        ("b", "c"): 2.0,
        ("a", "b", "c"): math.nan,
    }
    rounds: list[Round] = list(walk(search(candidates=list("abc"), better="lower"), lambda of: [loss[n] for n in of]))
    assert (rounds[-1].kept, rounds[-1].best, rounds[-1].ended) == (("b", "c"), 2.0, "no gain")


def test_all_sets_that_may_be_tried() -> None:
    assert len(reachable(search(start=["clip", "convnext"]))) == 2**4
    assert len(reachable(search(start=2))) == 2**6 - 1
    assert reachable(search(start=["b"], candidates=list("abc"))) == [("b",), ("a", "b"), ("b", "c"), ("a", "b", "c")]
    many = [f"e{k}" for k in range(9)]
    assert reachable(search(start=1, candidates=many)) == [*((name,) for name in many), tuple(many)]


WRONG = {
    "an unknown start": ({"start": ["clap"]}, "'clap'", "search.start", "'clip'"),
    "nothing to begin with": ({"start": []}, "[]", "search.start", "number"),
    "twice in the start": ({"start": ["clip", "clip"]}, "start", "search.start", "once"),
    "more than there are": ({"start": 7}, "7 of 6", "search.start", "at most 6"),
    "one candidate": ({"candidates": ["clip"]}, "no choice", "search.candidates", "two"),
    "one candidate twice": ({"candidates": ["clip", {"name": "clip"}]}, "'clip'", "search.candidates", "once"),
    "no score": ({"score": []}, "nothing", "search.score", "name one"),
    "no such score": ({"score": "avgg"}, "'avgg'", "search.score", "'avg'"),
    "a metric without a direction": ({"score": "loss"}, "'loss'", "search.better", "lower"),
    "an unknown key": ({"util": 3}, "'util'", "search.util", "until"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_search_that_cannot_be_is_refused(case: str) -> None:
    changes, what, where, fix = WRONG[case]
    tree = {"over": "model.encoder.use", "candidates": EXPERTS, "score": "avg"} | changes
    scores = {"avg": {"stage": "a", "suite": "vqa"}, "loss": {"stage": "a", "metric": "loss"}}
    with pytest.raises(ConfigError) as error:
        Study.parse({"name": "x", "question": "?", "recipe": "r", "scores": scores, "search": tree})
    assert what in error.value.what and where in str(error.value.where) and fix in str(error.value.fix)
