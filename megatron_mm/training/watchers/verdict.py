"""What a watcher said that ended a stage, RUN/stages/STAGE/stopped.json, and the refusal to train on. No torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from megavlm.platform.errors import CheckFailed
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from ...config import Stage
from .base import Watcher, labels

FILE = "stopped.json"


@dataclasses.dataclass(frozen=True)
class Stopped:
    """`watcher`: its label among the stage's; `back_to`: the step that the stage went back to, None for none."""

    watcher: str
    step: int
    sentence: str
    back_to: int | None = None

    def error(self, stage: str) -> CheckFailed:
        """What to say when it happens, and whenever the same command comes again."""
        kept = f"went back to step {self.back_to}" if self.back_to is not None else f"was saved after step {self.step}"
        return CheckFailed(
            f"the watcher '{self.watcher}' ended the stage, which {kept}: {self.sentence}",
            where=f"stage '{stage}', step {self.step}",
            fix="in a new run folder (--out): more text in the mixture, a lower optimizer.lr, or fewer steps; or keep "
            "what is there and interpolate its weights with the baseline's. The same command trains on from here "
            f"regardless with `on_fail: warn` for '{self.watcher}' in stages.{stage}.watch",
        )


def stop(run: RunFolder, stage: str, stopped: Stopped) -> None:
    """Write it down, whole."""
    path = _path(run, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(dataclasses.asdict(stopped), indent=2).encode())


def stopped_by(run: RunFolder, name: str, stage: Stage) -> Stopped | None:
    """What ended the stage, unless the recipe has since set that watcher to warn, or left it out."""
    path = _path(run, name)
    if not path.exists():
        return None
    told = Stopped(**json.loads(path.read_text()))
    watchers: list[Watcher] = stage.watch
    now = dict(zip(labels(watchers), watchers, strict=True)).get(told.watcher)
    return told if now is not None and now.on_fail != "warn" else None


def forget(run: RunFolder, stage: str) -> None:
    """Someone went back by hand: what was said is said of steps that no longer count. The attempt's events keep it."""
    _path(run, stage).unlink(missing_ok=True)


def refuse_stopped(run: RunFolder, name: str, stage: Stage) -> None:
    """Raise CheckFailed, exit code 3, for a stage that a watcher ended."""
    told = stopped_by(run, name, stage)
    if told is not None:
        raise told.error(name)


def _path(run: RunFolder, stage: str) -> Path:
    return run.path("stages", stage, FILE)
