"""`megavlm train RECIPE --dry-run --json` asked beforehand: all that arithmetic and files can tell of a training."""

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
    options += [f"--stage={stage}"] if stage is not None else []
    words = [sys.executable, "-m", "megavlm.platform.cli", "train", recipe, *overrides, *options]
    kept = {name: value for name, value in os.environ.items() if name not in PLACE}
    done = subprocess.run(words, capture_output=True, text=True, env=kept, timeout=SECONDS)
    told = _json(done.stdout)
    if "error" in told:
        error = told["error"]
        raise ERRORS.get(error["exit_code"], MegaVLMError)(error["what"], where=error["where"], fix=error["fix"])
    if done.returncode or "stages" not in told:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise MegaVLMError(f"train --dry-run failed: {words[0]}", where=recipe, fix=f"megavlm train {recipe} --dry-run")
    return told


def _json(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
