"""Going back to an earlier step of a stage: by hand, leaving global batches out from there, or by a watcher. No torch.

Nothing is deleted: later checkpoints are moved to checkpoints/STAGE/set-aside-NN (NN: the attempt that went back; with
"-watch" behind it where a watcher did), and lines of metrics.jsonl stay where they are and count no more
(data/skips.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import Attempt, RunFolder

from ..checkpoints.listing import complete_checkpoints, newest_passed, step_of
from ..config import Stages
from ..data.skips import Back, Skips, batch_of, read_skips, write_skips
from .stages import chosen, is_finished
from .watchers.verdict import forget

BY_A_WATCHER = (-1, 0, 0)  # in place of what was asked for


@dataclasses.dataclass(frozen=True)
class GoBack:
    """What was asked for, and what it comes to: the step it goes on from, and what stands behind that."""

    stage: str
    from_step: int
    skip: tuple[int, int]
    to: int
    later: tuple[Path, ...]  # checkpoints, newest first
    done: bool  # the run went back like this last time: the same command goes on

    def skips(self, run: RunFolder, attempt: int) -> Skips:
        """What the stage leaves out when this is done."""
        now = read_skips(run.path("stages", self.stage))
        asked = (self.from_step, *self.skip)
        return now if self.done else now.and_also(*self.skip, Back(attempt, self.to, asked))

    def do(self, run: RunFolder, attempt: Attempt) -> None:
        """Set the later checkpoints aside, newest first, then write down what is left out.

        What is interrupted in between has lost nothing; the same command does the rest.
        """
        if self.done:
            return
        names = _set_aside(self.later, f"set-aside-{attempt.number:02d}")
        write_skips(run.path("stages", self.stage), self.skips(run, attempt.number))
        forget(run, self.stage)
        attempt.event("went_back", stage=self.stage, to=self.to, left_out=list(self.skip), set_aside=names)

    def readable(self) -> str:
        """For people."""
        start, stop = self.skip
        without = f", without global batches {start}..{stop - 1}" if start < stop else ""
        if self.done:
            return f"stage '{self.stage}' went back to step {self.to} already{without}: going on"
        aside = f"; set aside: {', '.join(folder.name for folder in self.later)}" if self.later else ""
        return f"stage '{self.stage}' goes back to step {self.to}{without}{aside}"


def roll_back(run: RunFolder, attempt: Attempt, stage: str) -> int | None:
    """Make the newest checkpoint that watchers passed the newest of all; returns its step, None where there is none.

    What this attempt and earlier ones did after that step counts no more.
    """
    target = newest_passed(run, stage)
    if target is None:
        return None
    to = step_of(target)
    later = [folder for folder in reversed(complete_checkpoints(run, stage)) if step_of(folder) > to]
    names = _set_aside(later, f"set-aside-{attempt.number:02d}-watch")
    of = run.path("stages", stage)
    skips = read_skips(of)
    write_skips(of, dataclasses.replace(skips, back=(*skips.back, Back(attempt.number + 1, to, BY_A_WATCHER))))
    attempt.event("rolled_back", stage=stage, to=to, set_aside=names)
    return to


def _set_aside(later: Sequence[Path], name: str) -> list[str]:
    """Move checkpoints, newest first, into a folder beside them; their names."""
    for folder in later:
        aside = folder.parent / name
        aside.mkdir(parents=True, exist_ok=True)
        folder.rename(aside / folder.name)
    return [folder.name for folder in later]


def plan_back(run: RunFolder, stages: Stages, only: str | None, from_step: int | None, skip: str | None) -> GoBack:
    """Check what was asked for; raises ConfigError or InputError, and changes nothing."""
    start, stop = _range(skip) if skip is not None else (0, 0)
    if from_step is None:
        raise ConfigError("--skip says what to leave out, and not from where", where="--skip", fix="add --from-step A")
    name = _stage(run, stages, only)
    skips = read_skips(run.path("stages", name))
    last = skips.back[-1] if skips.back else None
    if last and last.asked == (from_step, start, stop):
        return GoBack(name, from_step, (start, stop), last.to, (), done=True)
    to, later = _checkpoints(run, name, from_step)
    if start < stop and start < batch_of(to, skips):
        raise ConfigError(
            f"global batch {start} was learnt from before step {to}, which the stage would go back to",
            where="--skip",
            fix=f"leave out batches from {batch_of(to, skips)} on, or go back further with --from-step",
        )
    return GoBack(name, from_step, (start, stop), to, later, done=False)


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ConfigError(
            f"'{text}' is no range of global batches", where="--skip", fix="A:B, from A up to B - 1, as in 500:510"
        )
    return int(found[1]), int(found[2])


def _stage(run: RunFolder, stages: Stages, only: str | None) -> str:
    """The stage that is meant: the one named, or the only one that has begun and is not finished."""
    begun = [name for name in chosen(stages, only) if run.path("checkpoints", name).is_dir()]
    open_ones = [name for name in begun if not is_finished(run, name)]
    if only is not None and only in begun and not open_ones:
        raise ConfigError(
            f"stage '{only}' is finished, and others may have gone on from it",
            where="--from-step",
            fix="train into another run folder (--out)",
        )
    if len(open_ones) != 1:
        what = f"stages {', '.join(open_ones)} have begun" if open_ones else "no stage has begun and is not finished"
        raise ConfigError(what, where=str(run.root), fix="name one with --stage" if open_ones else "train first")
    return open_ones[0]


def _checkpoints(run: RunFolder, stage: str, step: int) -> tuple[int, tuple[Path, ...]]:
    """The step of the newest checkpoint at or before `step`, and the checkpoints behind it."""
    found = complete_checkpoints(run, stage)
    before = [step_of(folder) for folder in found if step_of(folder) <= step]
    if not before and step > 0:
        there = ", ".join(str(step_of(folder)) for folder in found) or "none"
        raise InputError(
            f"stage '{stage}' has no checkpoint at or before step {step}",
            where=str(run.path("checkpoints", stage)),
            fix=f"there are: {there}; --from-step 0 begins the stage anew, and checkpoint.keep_last keeps more of them",
        )
    to = max(before, default=0)
    return to, tuple(folder for folder in reversed(found) if step_of(folder) > to)
