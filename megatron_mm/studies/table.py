"""A study's table as plain data: a row for each variant, what is wrong with the comparison, and the published rows."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder

from ..evaluation.chance import chance_accuracy
from .collect import RunFigures, figures
from .drive import reasons
from .figures import CONFIDENCE, agreement, difference, mean, share
from .runs import VariantRun
from .schema import Study

BySeed = dict[int, RunFigures]  # what a variant's finished trainings gave
COUNTS = ("parameters", "steps", "samples", "tokens", "tiles", "visual_tokens", "tokens_beside", "seconds")
STATES = ("failed", "unfinished", "not begun", "finished")  # of a row, the first that one of its trainings has


def make_table(study: Study, folder: RunFolder, runs: Sequence[VariantRun]) -> dict[str, Any]:
    """The table under stable keys, from the files of the runs; unfinished ones are rows without scores."""
    found: dict[str, BySeed] = {run.variant: {} for run in runs}
    for run in runs:
        if run.finished:
            found[run.variant][run.seed] = figures(study, run)
    reference, failed = study.reference or study.rows()[0].name, reasons(folder)
    rows = [_row(study, [r for r in runs if r.variant == name], found, failed) for name in found]
    return {
        "study": study.name,
        "question": study.question,
        "recipe": study.recipe,
        "overrides": study.overrides,
        "folder": str(folder.root),
        "reference": reference,
        "seeds": study.seeds,
        "confidence": CONFIDENCE,
        "finished": all(run.finished for run in runs),
        "scores": {name: _about(name, score.minus, found) for name, score in study.scores.items()},
        "rows": rows,
        "ranks": [told for name in study.rank[1:] if (told := _ranked(study.rank[0], name, rows))],
        "left_out": [variant.name for variant in study.rows() if variant.name not in found],
        "equal": study.equal,
        "unequal": [problem for name in study.equal if (problem := unequal(name, found))],
        "same_samples": same_samples(found),
        "published": [table.model_dump(mode="json") for table in study.published],
    }


def _row(
    study: Study,
    runs: Sequence[VariantRun],
    found: Mapping[str, BySeed],
    failed: Mapping[tuple[str, int], str],
) -> dict[str, Any]:
    name = runs[0].variant
    variant = next(variant for variant in study.rows() if variant.name == name)
    reference = study.compared_with(variant)
    of, against = found[name], found.get(reference, {}) if name != reference else {}
    states = {run.seed: _state(run, failed) for run in runs}
    return {
        "variant": name,
        "recipe": runs[0].base,
        "overrides": variant.overrides,
        "against": reference if name != reference else None,
        "state": next(state for state in STATES if state in states.values()),
        "reasons": {str(seed): failed[name, seed] for seed, state in states.items() if state == "failed"},
        "seeds": sorted(of),
        **{count: _over_seeds([getattr(one, count) for one in of.values()]) for count in COUNTS},
        "axes": runs[0].axes(),
        "scores": {key: told for key in study.scores if (told := _score(key, of, against))},
        "runs": [_run(run, of.get(run.seed), states[run.seed]) for run in runs],
    }


def _over_seeds(counts: Sequence[float]) -> float | None:
    """What all seeds agree on stays the whole number it is."""
    if len(set(counts)) == 1:
        return counts[0]
    return statistics.fmean(counts) if counts else None


def _run(run: VariantRun, found: RunFigures | None, state: str) -> dict[str, Any]:
    """One training, with the command that anybody can give again."""
    told = {"seed": run.seed, "state": state, "run": str(run.folder.root), "command": ["megavlm", *run.command()]}
    return told | (found.record() if found else {})


def _state(run: VariantRun, failed: Mapping[tuple[str, int], str]) -> str:
    if run.finished:
        return "finished"
    if (run.variant, run.seed) in failed:
        return "failed"
    return "unfinished" if run.folder.attempts() else "not begun"


def _score(key: str, of: BySeed, reference: BySeed) -> dict[str, Any] | None:
    """Value, spread, interval and items; where the reference has the same seeds, the difference to it."""
    answered = [one.answers[key] for one in of.values() if one.answers.get(key)]
    if not answered:
        values = [value for one in of.values() if (value := one.metrics.get(key)) is not None]
        return dataclasses.asdict(mean(values)) if values else None
    before = [one.before[key] for one in of.values() if one.before.get(key)]
    if before:
        return dataclasses.asdict(difference(before, answered))
    told = dataclasses.asdict(share(answered))
    both = [seed for seed in of if seed in reference]
    if not both:
        return told
    try:
        against = difference([reference[s].answers[key] for s in both], [of[s].answers[key] for s in both])
    except InputError as error:
        return told | {"difference": None, "problem": error.what}
    return told | {"difference": dataclasses.asdict(against)}


def _about(key: str, minus: str | None, found: Mapping[str, BySeed]) -> dict[str, Any]:
    """What a score's items are, told of the first training that has some. minus: the stage that is taken off."""
    answers = next((one.answers[key] for of in found.values() for one in of.values() if one.answers.get(key)), None)
    if answers is None:
        return {"items": None, "chance": None, "minus": minus}
    chance = None if minus else chance_accuracy((item.kind, item.expected) for item in answers)
    return {"items": len(answers), "chance": chance, "minus": minus}


def _ranked(first: str, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Whether two scores order the variants alike, among those that have both; None for fewer than two."""
    both = [row["scores"] for row in rows if first in row["scores"] and name in row["scores"]]
    if len(both) < 2:
        return None
    one, other = ([scores[key]["value"] for scores in both] for key in (first, name))
    return {"scores": [first, name]} | dataclasses.asdict(agreement(one, other))


def unequal(quantity: str, found: Mapping[str, BySeed]) -> str | None:
    """What is to be equal and is not, in words: compared seed by seed, among the trainings that have ended."""
    for seed in _seeds(found):
        counts = {name: getattr(of[seed], quantity) for name, of in found.items() if seed in of}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            return f"{quantity} seen differ with seed {seed}: {listed}"
    return None


def same_samples(found: Mapping[str, BySeed]) -> bool:
    """Whether, seed by seed, all variants drew the very same samples, in whatever order."""
    return all(len({of[seed].draws for of in found.values() if seed in of}) == 1 for seed in _seeds(found))


def _seeds(found: Mapping[str, BySeed]) -> list[int]:
    return sorted({seed for of in found.values() for seed in of})
