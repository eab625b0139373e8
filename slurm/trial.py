"""What other verbs tell of a training before it is queued: `train --dry-run --json` and `plan --json`, run as they are.

slurm imports no model: all that arithmetic and files can tell comes from there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.errors import CheckFailed, ConfigError, MegaVLMError
from megavlm.platform.nodes import COUNT, MEETING, RANK

SECONDS = 300.0
ERRORS = {2: ConfigError, 3: CheckFailed}
PLACE = (COUNT, RANK, MEETING)  # submitted from inside a job: its place is not the new job's


def dry_run(
    recipe: str, overrides: Sequence[str], run: Path, nodes: int, processes: int, stage: str | None
) -> dict[str, Any]:
    """The plan: world, stages (parameters, tp, pp, dp, ...), notes. Raises train's own refusal, with its exit code."""
    options = ["--dry-run", "--json", f"--nodes={nodes}", f"--nproc={processes}", f"--out={run}"]
    return _asked("train", recipe, overrides, [*options, *_only(stage)], f"megavlm train {recipe} --dry-run")


def plan(
    recipe: str, overrides: Sequence[str], gpu: str, nodes: int, per_node: int, stage: str | None
) -> dict[str, Any]:
    """Memory and time of each stage in the recipe's layout. Raises what `megavlm plan` cannot even say something of.

    What it refuses stands in the stage's `refused`.
    """
    options = [f"--gpu={gpu}", f"--gpus={nodes * per_node}", f"--gpus-per-node={per_node}", "--top=0", "--json"]
    return _asked("plan", recipe, overrides, [*options, *_only(stage)], f"megavlm plan {recipe} --gpu {gpu}", said_no=3)


def _only(stage: str | None) -> list[str]:
    return [f"--stage={stage}"] if stage is not None else []


def _asked(
    verb: str, recipe: str, overrides: Sequence[str], options: Sequence[str], again: str, said_no: int = 0
) -> dict[str, Any]:
    """What a verb prints as JSON; raises its own error. `said_no`: the exit code of an answer that is a no."""
    words = [sys.executable, "-m", "megavlm.platform.cli", verb, recipe, *overrides, *options]
    kept = {name: value for name, value in os.environ.items() if name not in PLACE}
    done = subprocess.run(words, capture_output=True, text=True, env=kept, timeout=SECONDS)
    told = _json(done.stdout)
    if "error" in told:
        error = told["error"]
        raise ERRORS.get(error["exit_code"], MegaVLMError)(error["what"], where=error["where"], fix=error["fix"])
    if done.returncode not in (0, said_no) or "stages" not in told:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise MegaVLMError(f"{verb} failed: {words[0]}", where=recipe, fix=again)
    return told


def _json(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
