"""What a search may come to before anything is trained: every set it can reach checked, and counted. Loads no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rounds import Round, most_trials, next_round
from .runs import VariantRun, all_runs
from .schema import Study
from .search import Combination, Search, called
from .trials import plus

MOST_FREE = 6  # candidates that may be in or out: every set of them is checked, at most 64


def outlook(study: Study, rounds: Sequence[Round], root: Path) -> dict[str, Any]:
    """`{over, rounds, next, most_trainings, reachable}` as plain data; `reachable` with each axis's parameters.

    Raises ConfigError or InputError for a set that cannot be trained, whether or not the search will come to it.
    """
    assert study.search
    last, more = rounds[-1], rounds[-1].ended == "unscored"
    sets = reachable(study.search)
    runs = all_runs(study.tried(sets).model_copy(update={"seeds": study.seeds[:1], "reference": None}), root)
    return {
        "over": study.search.over,
        "rounds": [{"round": one.number, "kept": list(one.kept)} for one in rounds if one.ended != "unscored"],
        "next": {"round": last.number, "combinations": list(map(list, last.scores))} if more else None,
        "ended": None if more else last.ended,
        "most_trainings": most_trials(study.search) * len(study.seeds),
        "reachable": [_counted(names, run) for names, run in zip(sets, runs, strict=True)],
    }


def reachable(search: Search) -> list[Combination]:
    """Every set that the search may try, smaller ones first; of too many, the first round's and the set of all."""
    names, given = search.names, set(search.given)
    if len(names) - len(given) > MOST_FREE:
        return [*next_round(search, []), tuple(names)]
    sets = (of for size in range(1, len(names) + 1) for of in itertools.combinations(names, size))
    return [of for of in sets if given <= set(of) and (len(of) >= search.first or (len(of) == 1 and not given))]


def _counted(names: Combination, run: VariantRun) -> dict[str, Any]:
    run.plan()
    return {"combination": list(names), "variant": called(names), "parameters": run.axes()}


def outlook_lines(told: dict[str, Any]) -> list[str]:
    """The outlook for people."""
    lines = [f"search over {told['over']}: at most {told['most_trainings']} trainings"]
    lines += [f"  round {one['round']} kept {plus(one['kept'])}" for one in told["rounds"]]
    if told["next"]:
        tried = ", ".join(plus(names) for names in told["next"]["combinations"])
        lines.append(f"  round {told['next']['round']} tries {tried}")
    else:
        lines.append(f"  it is over: {told['ended']}")
    lines.append(f"  {'reachable':<40}{'encoder + connector':>20}{'parameters':>14}")
    for row in told["reachable"]:
        lines.append(
            f"  {plus(row['combination']):<40}{row['parameters']['vision']:>20,}{row['parameters']['total']:>14,}"
        )
    return lines
