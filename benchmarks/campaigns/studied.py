"""What the campaigns on studies have in common: run one, hold it against its bounds, write its table down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megavlm.platform.runs import default_runs_root

TIMES_CHANCE = 3  # what each variant's visual accuracy has to reach
BOUND = f"- bound: as many samples for every variant, and visual accuracy of at least {TIMES_CHANCE} x chance"
PACKAGES = ("torch", "megatron-core")
Bounds = tuple[str, Callable[[dict[str, Any]], list[str]]]


def campaign(study: str, script: Path, also: Bounds | None = None) -> int:
    """Run a shipped study, and write its table beside `script`. 0, or 3 when a bound does not hold.

    `also`: what else has to hold in its table, in words, and what of that does not.

    Its folder is of this commit: the campaign that was stopped goes on, and no figures of another commit are taken.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    out, started = default_runs_root() / "campaigns" / f"{study}-{commit}", time.monotonic()
    words = [sys.executable, "-m", "megavlm.platform.cli", "study", "run", study, "--out", str(out), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode not in {0, 3}:
        print(f"the study ended with {done.returncode}; the same command goes on", file=sys.stderr)
        return 1
    table = json.loads(done.stdout)
    problems = [*table["unequal"], *(told for row in table["rows"] if (told := below(row, table)))]
    problems += also[1](table) if also else []
    head = [
        *facts(script.stem, commit, table["seeds"], time.monotonic() - started),
        BOUND + (f"; {also[0]}" if also else ""),
    ]
    page = (out / "table.md").read_text().replace("\n## ", "\n### ").partition("\n")[2]
    bounds = [f"- BOUND NOT HELD: {problem}" for problem in problems] or ["- bounds: held"]
    script.with_suffix(".md").write_text("\n".join([f"# Study {study}", "", *head, *bounds, page]))
    return 3 if problems else 0


def below(row: dict[str, Any], table: dict[str, Any]) -> str | None:
    """What is wrong with a variant's visual accuracy, in words."""
    value, bound = row["scores"]["vqa"]["value"], TIMES_CHANCE * table["scores"]["vqa"]["chance"]
    return f"{row['variant']}: vqa {value:.3f} is below {bound:.3f}" if value < bound else None


def facts(name: str, commit: str, seeds: list[int], seconds: float) -> list[str]:
    """What the figures belong to."""
    return [
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        f"- command: `make campaign NAME={name}`",
        f"- seeds: {', '.join(map(str, seeds))}",
        f"- machine: {os.cpu_count()} cores, no GPU",
        f"- versions: {', '.join(f'{package} {version(package)}' for package in PACKAGES)}",
        f"- wall time: {seconds:.0f} s",
    ]
