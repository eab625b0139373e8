"""What a run folder says of its training: how far each stage is, its losses, its speed, its gate. Loads no torch."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from megavlm.platform.runs import RunFolder

from ..config import Stages
from ..data.skips import read_skips
from .stages import chosen, is_finished

EXIT_CODES = {"pass": 0, "fail": 3, "undecided": 5}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The figures of a run, and the exit code they mean."""

    run: str
    finished: bool
    saved: int | None
    stages: dict[str, dict[str, Any]]
    exit_code: int

    def record(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        return dataclasses.asdict(self)

    def readable(self) -> str:
        """The figures for people."""
        rows = [f"run {self.run}: {'finished' if self.finished else 'not finished'}"]
        for name, told in self.stages.items():
            figures = "  ".join(f"{key} {value}" for key, value in told.items() if value is not None)
            rows.append(f"  {name:<14}{figures}")
        if not self.finished:
            rows.append("  the same command goes on from here")
        return "\n".join(rows)


def outcome(run: RunFolder, stages: Stages, only: str | None = None, saved: int | None = None) -> Outcome:
    """Read the run folder; `saved` is the step that this attempt saved on request.

    Exit code 4: not finished; 3: a gate said no; 5: a gate could not decide; 0: done.
    """
    names = chosen(stages, only)
    told = {name: _gate_figures(run, name) if name in stages.gates else stage_figures(run, name) for name in names}
    finished = all(is_finished(run, name) for name in names)
    verdicts = [EXIT_CODES[row["gate"]] for row in told.values() if row.get("gate")]
    code = next((code for code in (3, 5) if code in verdicts), 0) if finished else 4
    return Outcome(str(run.root), finished, saved, told, code)


def stage_figures(run: RunFolder, name: str) -> dict[str, Any]:
    """One stage: steps done, first and last loss, tokens per second of its steps."""
    steps = stage_steps(run, name)
    seconds = sum(line["seconds"] for line in steps)
    return {
        "finished": is_finished(run, name),
        "steps": steps[-1]["step"] if steps else 0,
        "first_loss": steps[0]["loss"] if steps else None,
        "last_loss": steps[-1]["loss"] if steps else None,
        "tokens_per_second": round(sum(line["tokens"] for line in steps) / seconds) if seconds else None,
    }


def _gate_figures(run: RunFolder, name: str) -> dict[str, Any]:
    """A gate: its verdict, and the drop that it found."""
    path = run.path("gate", f"{name}.json")
    told = json.loads(path.read_text()) if path.exists() else {}
    return {"finished": is_finished(run, name), "gate": told.get("verdict"), "drop": told.get("drop")}


def stage_steps(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """The stage's lines of metrics.jsonl that count, one per step: the last one written where a resume repeated it."""
    skips = read_skips(run.path("stages", name))
    lines = [line for line in run.metrics(unique=("stage", "step")) if line.get("stage") == name and "loss" in line]
    lines = [line for line in lines if skips.counts(line.get("attempt", 0), line["step"])]
    return sorted(lines, key=lambda line: line["step"])
