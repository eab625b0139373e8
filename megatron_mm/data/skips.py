"""Global batches that a stage leaves out after a loss spike, and how often it went back to an earlier step.

RUN/stages/STAGE/skips.json: {"left_out": [[first, behind the last], ...], "back": [{"attempt", "to", "asked"}, ...]}.
A batch that is left out is so from the stage's first step on, as if the manifest had never held it. Since only batches
that no counting step has learnt from can be left out, no step that counts changes its batch.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from megavlm.platform.storage import write_atomic

FILE = "skips.json"


class Back(NamedTuple):
    """From this attempt on, what earlier ones did after step `to` does not count.

    asked: the step and the range of batches as given, by which the same command is known again.
    """

    attempt: int
    to: int
    asked: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Skips:
    """`left_out`: runs of global batches (first, behind the last), sorted, apart from each other."""

    left_out: tuple[tuple[int, int], ...] = ()
    back: tuple[Back, ...] = ()

    @property
    def count(self) -> int:
        """How many global batches are left out."""
        return sum(stop - start for start, stop in self.left_out)

    def and_also(self, start: int, stop: int, back: Back) -> Skips:
        """With the batches start..stop-1 left out as well (none where they are equal), after going `back`."""
        runs: list[tuple[int, int]] = []
        for first, last in sorted([*self.left_out, *([(start, stop)] if start < stop else [])]):
            if runs and first <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
            else:
                runs.append((first, last))
        return Skips(tuple(runs), (*self.back, back))

    def counts(self, attempt: int, step: int) -> bool:
        """Whether what an attempt did in a step (from 1) still counts."""
        return all(attempt >= each.attempt or step <= each.to for each in self.back)


def batch_of(step: int, skips: Skips) -> int:
    """The global batch of update `step` (from 0): the manifest's, in their order, without those left out."""
    for start, stop in skips.left_out:
        if step < start:
            break
        step += stop - start
    return step


def step_of(batch: int, skips: Skips) -> int | None:
    """The update (from 0) that learns from a global batch; None for one that is left out."""
    before = 0
    for start, stop in skips.left_out:
        if start <= batch < stop:
            return None
        before += stop - start if stop <= batch else 0
    return batch - before


def read_skips(stage_folder: Path) -> Skips:
    """A stage's skips; none where it never went back."""
    path = stage_folder / FILE
    if not path.exists():
        return Skips()
    told = json.loads(path.read_text())
    return Skips(tuple((a, b) for a, b in told["left_out"]), tuple(_back(each) for each in told["back"]))


def write_skips(stage_folder: Path, skips: Skips) -> None:
    """Put them in place, whole."""
    stage_folder.mkdir(parents=True, exist_ok=True)
    told = {"left_out": [list(run) for run in skips.left_out], "back": [each._asdict() for each in skips.back]}
    write_atomic(stage_folder / FILE, json.dumps(told, indent=2).encode())


def _back(told: dict[str, Any]) -> Back:
    first, start, stop = told["asked"]
    return Back(told["attempt"], told["to"], (first, start, stop))
