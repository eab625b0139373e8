"""Campaign: what lies between a trained decoder and its backbone's? `make campaign NAME=text_interpolation`.

nvlm-d-mini is trained once, with text in its SFT and without (its stage `control`). Weights between each of the two and
the language model before them are made by `megavlm convert interpolate` and judged by `megavlm eval`, as anybody would.
It is no study: a study trains its variants, and nothing is trained here but the two ends.

Exits with 3 when an end is not what it has to be: weight 1 must answer every item as the trained stage did, and weight
0 every text as the backbone did, whose decoder it is.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studied import facts

from megavlm.megatron_mm.checkpoints.listing import latest
from megavlm.megatron_mm.evaluation.predictions import Prediction, read_predictions
from megavlm.megatron_mm.evaluation.stage import predictions_path
from megavlm.megatron_mm.studies import show
from megavlm.megatron_mm.studies.figures import Value, difference, share
from megavlm.platform.runs import RunFolder, default_runs_root

RECIPE, SEED = "nvlm-d-mini", 1
BACKBONE, TRAINED = "language", ("sft", "control")
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SUITES = ("text", "vqa")
ONE_PROCESS = [f"stages.{name}.parallel.tp=1" for name in ("language", "connector", "sft", "control", "gate")]
GATES = (3, 5)  # exit codes of a training that is through, and whose gate did not say yes
NOTE = (
    "Per cent of items answered exactly; in brackets the 95% interval that so few items leave. Differences are paired."
)
THEIRS = (
    "Published: Aya Vision ships 0.4 of its vision-language model and 0.6 of its language model, and reports that this "
    "keeps more of the text than 10 or 30 % of text in the training does, and is better at images too. The line is "
    "WiSE-FT's (arXiv 2109.01903). Other models, other tasks: compare where on the line the best of both lies."
)
Answers = dict[str, list[Prediction]]  # by suite


def main() -> int:
    """Train, mix, judge, and write the table. 0, or 3 when an end is not what it has to be."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    folder, started = default_runs_root() / "campaigns" / f"text_interpolation-{commit}", time.monotonic()
    trained = RunFolder(folder / "trained")
    for words in ([], ["--stage", TRAINED[1]]):
        megavlm("train", RECIPE, f"seed={SEED}", *ONE_PROCESS, *words, "--out", str(trained.root), allowed=GATES)
    found = {(stage, weight): judged(folder, stage, weight) for stage in TRAINED for weight in WEIGHTS}
    own = {stage: answers_of(trained, stage) for stage in TRAINED}
    backbone = read_predictions(predictions_path(trained, BACKBONE, "text"))
    problems = list(unlike(found, own, backbone))
    bounds = [f"- BOUND NOT HELD: {problem}" for problem in problems] or ["- bounds: held"]
    head = facts("text_interpolation", commit, [SEED], time.monotonic() - started)
    page = ["# Between a trained model and its backbone", "", *head, bound(), *bounds, "", *table(found, own, backbone)]
    Path(__file__).with_suffix(".md").write_text("\n".join([*page, "", THEIRS, ""]))
    return 3 if problems else 0


def megavlm(*words: str, allowed: tuple[int, ...] = ()) -> dict[str, Any]:
    """What a command printed; ends the campaign where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "megavlm.platform.cli", *words, "--json"], stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in {0, *allowed}:
        sys.exit(f"megavlm {' '.join(words)} ended with {done.returncode}; the same command goes on")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def judged(folder: Path, stage: str, weight: float) -> Answers:
    """The answers of weight * `stage` + (1 - weight) * backbone."""
    mixed, trained = RunFolder(folder / f"{stage}-{weight:g}"), folder / "trained"
    if latest(mixed, stage) is None:
        shutil.rmtree(mixed.root, ignore_errors=True)  # what was stopped half way
        sides = (f"{trained}:{stage}", f"{trained}:{BACKBONE}")
        megavlm("convert", "interpolate", *sides, "--weight", f"{weight:g}", "--out", str(mixed.root))
    for suite in SUITES:
        megavlm("eval", str(mixed.root), "--stage", stage, "--suite", suite)
    return answers_of(mixed, stage)


def answers_of(run: RunFolder, stage: str) -> Answers:
    """What a stage answered to each suite."""
    return {suite: read_predictions(predictions_path(run, stage, suite)) for suite in SUITES}


def unlike(
    found: dict[tuple[str, float], Answers], own: dict[str, Answers], backbone: list[Prediction]
) -> Iterator[str]:
    """What is wrong with the ends of the lines, in words."""
    for stage in TRAINED:
        ends = {
            "weight 1 and the stage itself": [(found[stage, 1.0][suite], own[stage][suite]) for suite in SUITES],
            "weight 0 and the backbone": [(found[stage, 0.0]["text"], backbone)],
        }
        for name, sides in ends.items():
            other = sum(a != b for one, two in sides for a, b in zip(one, two, strict=True))
            if other:
                yield f"{stage}: {name} answer {other} items differently"


def bound() -> str:
    """What has to hold."""
    return "- bound: weight 1 answers as the trained stage does, weight 0 every text as the backbone, item by item"


def table(
    found: dict[tuple[str, float], Answers], own: dict[str, Answers], backbone: list[Prediction]
) -> Iterator[str]:
    """A row for each weight, with both suites and what they are more than the end that is best at them."""
    columns = ["trained", "weight", "text", "more than the backbone", "vqa", "more than the trained stage"]
    rows = [
        [
            stage,
            f"{weight:g}",
            show.value(plain(share([answers["text"]]))),
            show.points(plain(difference([backbone], [answers["text"]]))),
            show.value(plain(share([answers["vqa"]]))),
            show.points(plain(difference([own[stage]["vqa"]], [answers["vqa"]]))),
        ]
        for (stage, weight), answers in found.items()
    ]
    yield from show.lines(columns, rows)
    yield from ("", NOTE)


def plain(value: Value) -> dict[str, Any]:
    """As `show` takes it."""
    return dataclasses.asdict(value)


if __name__ == "__main__":
    sys.exit(main())
