"""What a study would train, before anything is started: each variant checked as `train --dry-run` does. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megavlm.platform.errors import ConfigError

from ..config import Stages
from .outlook import outlook_lines
from .runs import VariantRun
from .schema import Study
from .shared import Sharing


def planned(study: Study, runs: Sequence[VariantRun], sharing: Sharing) -> dict[str, Any]:
    """`{runs, notes}` as plain data. `samples` is None where only packing tells how many there are.

    Raises ConfigError or InputError for a variant that cannot be trained, or when the batches already tell that the
    variants will not see equally many samples.
    """
    told, notes = list[dict[str, Any]](), list[str]()
    for run in runs:
        plan = run.plan()
        notes += [note for note in plan.notes if note not in notes]
        told.append(
            {
                "variant": run.variant,
                "seed": run.seed,
                "finished": run.finished,
                "samples": samples(run),
                "parameters": plan.stages[-1].parameters,
                "axes": run.axes(),
                "stages": {stage.name: stage.steps for stage in plan.stages},
                "taken_over": {name: owner.label for name, owner in sharing.sources(run).items()},
                "run": str(run.folder.root),
                "command": ["megavlm", *run.command()],
            }
        )
    if "samples" in study.equal:
        notes += _equal_samples({run.variant: samples(run) for run in runs})
    return {"runs": told, "notes": notes}


def samples(run: VariantRun) -> int | None:
    """How many samples a training will see, where its global batches are counted in samples."""
    stages: Stages = run.recipe.section("stages")
    batches = [(stages[name].steps, stages[name].mixture.global_batch) for name in run.trained]
    if any(batch.unit != "samples" for _, batch in batches):
        return None
    return sum(steps * batch.size for steps, batch in batches)


def _equal_samples(by_variant: dict[str, int | None]) -> list[str]:
    """A note where that will only be known afterwards; raises ConfigError when it is known to be otherwise."""
    if None in by_variant.values():
        return ["a batch is counted in packs or tokens: whether samples are equal is told when all is packed"]
    if len(set(by_variant.values())) > 1:
        listed = ", ".join(f"{name} {count:,}" for name, count in by_variant.items())
        fix = "give all variants the same steps and mixture.batch, or leave samples out of `equal`"
        raise ConfigError(f"the variants will see different numbers of samples: {listed}", where="equal", fix=fix)
    return []


def plan_lines(told: dict[str, Any]) -> str:
    """The plan for people; the commands themselves are in --json."""
    lines = [f"study {told['study']}: {len(told['runs'])} trainings, folder {told['folder']}"]
    lines.append(f"  {'variant':<20}{'seed':>5}{'parameters':>14}{'samples':>10}  steps")
    for row in told["runs"]:
        count = "" if row["samples"] is None else f"{row['samples']:,}"
        steps = ", ".join(f"{name} {_steps(row, name)}" for name in row["stages"])
        done = "  finished" if row["finished"] else ""
        lines.append(f"  {row['variant']:<20}{row['seed']:>5}{row['parameters']:>14,}{count:>10}  {steps}{done}")
    lines += outlook_lines(told["search"]) if "search" in told else []
    return "\n".join([*lines, *(f"  note: {note}" for note in told["notes"])])


def _steps(row: dict[str, Any], stage: str) -> str:
    owner = row["taken_over"].get(stage)
    return f"{row['stages'][stage]:,}" + (f" (of {owner})" if owner else "")
