"""Which checkpoints a stage has, which of them stay, and which one is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.megatron_mm.checkpoints.listing import (
    COMPLETE,
    checkpoint_path,
    complete_checkpoints,
    find_checkpoint,
    latest,
    prune,
    resolve,
    step_of,
)
from megavlm.megatron_mm.config import Checkpoint
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path, write_recipe) -> RunFolder:
    stage = "train: [decoder], steps: 9, optimizer: {lr: 1e-3}"
    mixture = "mixture: {weights: {text: 1}, sequence_length: 64, packs_per_batch: 1}"
    stages = f"  first: {{{stage}, {mixture}}}\n  second: {{after: [first], {stage}, {mixture}}}\n"
    tree = yaml.safe_load(write_recipe(tmp_path, stages, max_tiles=2, seed=1).read_text())
    return RunFolder.create(tmp_path / "run", {"name": "tiny"} | tree, {}, [])


def write(run: RunFolder, step: int, stage: str = "first", whole: bool = True) -> Path:
    folder = checkpoint_path(run, stage, step)
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(b"tensors")
    if whole:
        (folder / COMPLETE).write_text("{}")
    return folder


def steps(run: RunFolder) -> list[int]:
    return sorted(step_of(folder) for folder in run.path("checkpoints", "first").iterdir())


def train(run: RunFolder, saves: Sequence[int], options: Checkpoint) -> None:
    for step in saves:
        prune(run, "first", options, newest=write(run, step))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 20),
    every=st.integers(1, 5),
    keep_last=st.integers(1, 6),
    multiple=st.none() | st.integers(1, 4),
)
def test_the_newest_few_and_each_so_many_stay(
    tmp_path_factory: pytest.TempPathFactory, count: int, every: int, keep_last: int, multiple: int | None
) -> None:
    run = RunFolder.create(tmp_path_factory.mktemp("kept") / "run", {}, {}, [])
    keep_every = None if multiple is None else multiple * every
    saves = [every * (k + 1) for k in range(count)]
    train(run, saves, Checkpoint(every=every, keep_last=keep_last, keep_every=keep_every))
    assert steps(run) == [k for k in saves if k in saves[-keep_last:] or (keep_every and k % keep_every == 0)]


def test_what_was_killed_goes_and_does_not_count(run: RunFolder) -> None:
    write(run, 10)
    write(run, 12, whole=False)
    (run.path("checkpoints", "first", "step-000004")).mkdir()
    assert latest(run, "first") == checkpoint_path(run, "first", 10)
    train(run, [20], Checkpoint(keep_last=2))
    assert steps(run) == [10, 20]


def test_the_one_just_written_stays_below_newer_ones(run: RunFolder) -> None:
    """Who goes back to an earlier step writes steps below those that are still there."""
    for step in (10, 20, 30):
        write(run, step)
    train(run, [11], Checkpoint(keep_last=2))
    assert steps(run) == [11, 20, 30]


def test_numbers_beyond_six_digits_are_in_order(run: RunFolder) -> None:
    for step in (999_999, 1_000_000, 20):
        write(run, step)
    assert [step_of(folder) for folder in complete_checkpoints(run, "first")] == [20, 999_999, 1_000_000]


def test_a_run_means_its_last_trained_stage_and_a_folder_itself(run: RunFolder) -> None:
    with pytest.raises(InputError, match="no complete checkpoint"):
        find_checkpoint(run, "first")
    older, newer = write(run, 10), write(run, 20)
    found = resolve(str(run.root))
    assert (found.stage, found.checkpoint) == ("first", newer)
    later = write(run, 3, stage="second")
    assert resolve(str(run.root)).checkpoint == later
    assert resolve(str(run.root), "first").checkpoint == newer
    named = resolve(str(older))
    assert (named.stage, named.checkpoint, named.run.root) == ("first", older, run.root)
    aside = run.path("checkpoints", "first", "set-aside-02", older.name)
    aside.parent.mkdir()
    older.rename(aside)
    named = resolve(str(aside))
    assert (named.stage, named.checkpoint, named.run.root) == ("first", aside, run.root)


def test_a_folder_of_another_stage_and_half_a_checkpoint_are_refused(run: RunFolder) -> None:
    whole, half = write(run, 10), write(run, 20, whole=False)
    with pytest.raises(InputError, match="no complete checkpoint at"):
        resolve(str(half))
    with pytest.raises(ConfigError, match="a checkpoint of stage 'first', not of 'second'"):
        resolve(str(whole), "second")


def test_keep_every_is_a_multiple_of_every() -> None:
    with pytest.raises(ConfigError, match="keep_every 70 is no multiple of every 20") as refused:
        Checkpoint.parse({"every": 20, "keep_every": 70})
    assert "keep_every=60" in str(refused.value.fix)
