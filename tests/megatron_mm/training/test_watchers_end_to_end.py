"""`megavlm train` of a stage that loses what the one before it knew: ended by the gate, rolled back, exit code 3."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import complete_checkpoints
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.evaluation.predictions import read_predictions
from megavlm.megatron_mm.evaluation.stage import evaluate_stage
from megavlm.megatron_mm.inference.load import load_stage
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.state import describe
from megavlm.slurm.profile import Attempts
from megavlm.slurm.supervisor.judge import Facts, judge
from megavlm.slurm.supervisor.policy import Standing, Verdict, decide

STAGES = """\
  language:
    train: [decoder]
    mixture: {weights: {text: 1}, sequence_length: 128, packs_per_batch: 2}
    steps: 80
    precision: fp32
    optimizer: {lr: 1e-2, min_lr: 1e-3, warmup_steps: 2}
    evaluate: {text: text}
  sft:
    after: [language]
    train: [encoder, connector, decoder]
    mixture: {weights: {vqa: 1}, sequence_length: 128, packs_per_batch: 2}
    steps: 30
    precision: fp32
    optimizer: {lr: 5e-2, schedule: constant, warmup_steps: 60}
    checkpoint: {every: 3, keep_last: 9}
    watch:
      - {name: gate, every: 2, baseline: language, max_drop: 0.2, on_fail: roll_back}
      - {name: drift, every: 2, baseline: language, texts: text}
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(280)
def test_what_forgets_is_stopped_and_the_newest_checkpoint_still_knows(
    recipe: Path,
    tmp_path: Path,
    write_recipe: Any,
    megavlm: Callable[..., subprocess.Popen[str]],
) -> None:
    for name in ("text", "vqa"):
        (tmp_path / name).symlink_to(recipe.parent / name)
    path = write_recipe(tmp_path, STAGES, max_tiles=2, seed=5)
    started = megavlm("train", str(path), "--out", str(tmp_path / "run"), "--json")
    out, err = started.communicate(timeout=250)
    assert started.returncode == 3, err
    assert "the watcher 'gate' ended the stage" in out + err and "lower optimizer.lr" in out + err

    run, found = RunFolder.open(tmp_path / "run"), load_recipe(str(path))
    (attempt,) = run.attempts()
    looks = [event for event in attempt.events() if event["kind"] == "watch" and event["watcher"] == "gate"]
    passed = [0, *(event["step"] for event in looks if event["verdict"] == "pass")]  # the beginning counts as passed
    assert looks[-1]["verdict"] == "fail" and looks[-1]["drop_low"] > 0.2
    drifts = [event["kl"] for event in attempt.events() if event["kind"] == "watch" and event["watcher"] == "drift"]
    assert max(drifts) == drifts[-1] > 0  # at its highest when the gate failed
    newest = complete_checkpoints(run, "sft")[-1]
    assert newest.name == f"step-{passed[-1]:06d}"
    assert not run.finished and describe(run)["state"] == "failed" and "gate" in describe(run)["error"]

    ending = judge(Facts(code=3, events=attempt.events()))
    assert ending.verdict == Verdict.REFUSED
    assert decide(ending, [], Standing(("n1",), 1), Attempts()).action == "stop"

    before = read_predictions(run.path("predictions", "language", "text.jsonl"))
    backend.start_processes()
    model = load_stage(run, found, "sft", Parallel())
    after = evaluate_stage(model, run, found, "sft", {"text": "text"})["text"]
    backend.shutdown()
    right = [sum(item.correct for item in items) / len(items) for items in (before, after)]
    assert right[0] > 0.8 and right[1] > right[0] - 0.2
