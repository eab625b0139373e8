"""A search's trials as trainings: each combination an ordinary variant of the study, its score read from the files.

Nothing is remembered beside the trainings: the rounds are told anew from what is finished, so a search that was killed
goes on where it was, and comes to the same set. Loads no torch.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.runs import RunFolder

from .collect import score_of
from .drive import Driver, driving
from .rounds import Round, Trial, walk
from .runs import VariantRun, all_runs, check_unchanged
from .schema import Study
from .search import Combination, Search, called
from .shared import Sharing

Tried = list[Combination]


def so_far(study: Study, folder: RunFolder) -> tuple[Study, list[Round]]:
    """(the study with all that was tried as its variants, the rounds that the finished trainings tell).

    The last round may have scores missing. A study that is no search is returned as it is, without rounds. Raises what
    `all_runs` and `check_unchanged` do.
    """
    if study.search is None:
        return study, []
    rounds = list(walk(study.search, _reading(study, folder.root)))
    return study.tried(dict.fromkeys(names for one in rounds for names in one.scores)), rounds


def go_on(study: Study, folder: RunFolder) -> None:
    """Train round after round, until the search is over or a training failed; raises what `Driver.bring` does."""
    search = _search(study)
    with driving(folder, study) as driver:
        for one in walk(search, _training(study, driver)):
            told = {"round": one.number, "kept": list(one.kept), "score": one.best, "ended": one.ended}
            driver.attempt.event("round", **told)
            print(f"round {one.number}: {outcome(search, one)}", file=sys.stderr)


def outcome(search: Search, one: Round) -> str:
    """What a round came to, in words."""
    missing = [names for names, score in one.scores.items() if score is None]
    if missing:
        return f"undecided, {', '.join(plus(names) for names in missing)} without a score"
    gained = one.kept in one.scores
    kept = plus(one.kept) or "nothing"
    told = f"{kept} is kept" if gained else f"none is better than {kept}"
    return told + (f"; the search ends: {one.ended}" if one.ended else "")


def plus(names: Sequence[str]) -> str:
    """A combination for people."""
    return " + ".join(names)


def _reading(study: Study, root: Path) -> Trial:
    return lambda combinations: [_score(study, runs) for runs in _runs(study, combinations, root)]


def _training(study: Study, driver: Driver) -> Trial:
    known: list[VariantRun] = []  # a stage that an earlier round trained is taken over from there

    def trial(combinations: Sequence[Combination]) -> list[float | None]:
        runs = _runs(study, combinations, driver.folder.root)
        tried = [run for of in runs for run in of]
        known.extend(tried)
        driver.bring(f"{study.name}-{len(combinations[0])}", tried, Sharing(known))
        return [_score(study, of) for of in runs]

    return trial


def _runs(study: Study, combinations: Sequence[Combination], root: Path) -> list[list[VariantRun]]:
    """The trainings of each combination, one for every seed."""
    runs = all_runs(study.tried(combinations), root)
    check_unchanged(runs)
    return [[run for run in runs if run.variant == called(names)] for names in combinations]


def _score(study: Study, runs: Sequence[VariantRun]) -> float | None:
    """The mean over seeds of the mean of the scores that decide; None before all seeds have ended."""
    if not all(run.finished for run in runs):
        return None
    return statistics.fmean(score_of(study, run, name) for run in runs for name in _search(study).scores)


def _search(study: Study) -> Search:
    assert study.search
    return study.search
