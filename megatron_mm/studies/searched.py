"""The rounds of a search as plain data, as a table, and as a curve. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .rounds import Round
from .runs import VariantRun
from .schema import Study
from .search import Combination, called
from .trials import outcome, plus

COLUMNS = ["round", "combination", "encoder + connector", "parameters", "score", ""]
Curves = dict[str, list[tuple[float, float]]]


def record(study: Study, rounds: Sequence[Round], runs: Sequence[VariantRun]) -> dict[str, Any]:
    """The search under stable keys. `runs`: the trainings of all that was tried."""
    assert study.search
    counted = {run.variant: run.axes() for run in runs}
    return {
        **study.search.model_dump(mode="json", include={"over", "start", "until"}),
        "candidates": study.search.names,
        "scores": study.search.scores,
        "better": study.search.better or "higher",
        "percent": all(study.scores[name].suite for name in study.search.scores),
        "kept": list(rounds[-1].kept),
        "best": number(rounds[-1].best),
        "ended": rounds[-1].ended,
        "rounds": [
            {
                "round": one.number,
                "kept": list(one.kept),
                "best": number(one.best),
                "outcome": outcome(study.search, one),
                "tried": [_tried(one, names, counted[called(names)]) for names in one.scores],
            }
            for one in rounds
        ],
    }


def _tried(one: Round, names: Combination, parameters: dict[str, int]) -> dict[str, Any]:
    return {
        "combination": list(names),
        "variant": called(names),
        "score": number(one.scores[names]),
        "kept": names == one.kept,
        "parameters": parameters,
    }


def number(score: float | None) -> float | None:
    """A score for JSON, which has no NaN."""
    return None if score is None or math.isnan(score) else score


def heading(searched: dict[str, Any]) -> str:
    """What the rounds are of."""
    score = " and ".join(searched["scores"]) + (", per cent" if searched["percent"] else "")
    mean = "mean of " if len(searched["scores"]) > 1 else ""
    return f"Search over {searched['over']}; score: {mean}{score}, {searched['better']} is better"


def grid(searched: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A row for everything that was tried, round after round."""
    rows = []
    for one in searched["rounds"]:
        for tried in one["tried"]:
            counts = (f"{tried['parameters'][key]:,}" for key in ("vision", "total"))
            kept = "kept" if tried["kept"] else ""
            rows.append(
                [str(one["round"]), plus(tried["combination"]), *counts, _shown(searched, tried["score"]), kept]
            )
    return COLUMNS, rows


def outcomes(searched: dict[str, Any]) -> list[str]:
    """What each round came to."""
    return [f"round {one['round']}: {one['outcome']}" for one in searched["rounds"]]


def curves(searched: dict[str, Any]) -> Curves:
    """By round: the best of what it tried, and what is kept after it; empty before a round has scores."""
    pick = max if searched["better"] == "higher" else min
    factor = 100 if searched["percent"] else 1
    drawn: Curves = {"best of the round": [], "kept": []}
    for one in searched["rounds"]:
        scores = [tried["score"] for tried in one["tried"] if tried["score"] is not None]
        if len(scores) == len(one["tried"]):
            drawn["best of the round"].append((one["round"], factor * pick(scores)))
        if one["best"] is not None:
            drawn["kept"].append((one["round"], factor * one["best"]))
    return {name: points for name, points in drawn.items() if points}


def _shown(searched: dict[str, Any], score: float | None) -> str:
    if score is None:
        return "–"
    return f"{100 * score:.1f}" if searched["percent"] else f"{score:.4g}"
