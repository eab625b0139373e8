"""Checkpoints in one process: exact, atomic, pruned, and never a way to run a stranger's code."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import COMPLETE, checkpoint_path, latest
from megavlm.megatron_mm.checkpoints.safe_load import INDEX
from megavlm.megatron_mm.checkpoints.weights import fill
from megavlm.megatron_mm.config import Checkpoint, Optimizer, Parallel
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training import checkpoint
from megavlm.megatron_mm.training.step import cut, train_step
from megavlm.megatron_mm.training.wrapping import make_optimizer, wrap
from megavlm.platform.errors import InputError, MegaVLMError
from megavlm.platform.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {}, {}, [])


@pytest.fixture
def trained(one_process, tiny_model, tiny_pack):
    """`trained(precision, steps, seed)` -> model, optimizer, and a function that takes one more step."""

    def make(precision: str = "fp32", steps: int = 2, seed: int = 1) -> tuple[Any, Any, Any]:
        config = tiny_model()
        parallel = Parallel()
        model = build_model(config, backend.build_context(parallel, precision))
        backend.initialise(model, seed)
        model.freeze(["encoder", "connector"])
        wrapped = wrap(model, precision)
        optimizer = make_optimizer(wrapped, Optimizer(lr=1e-2), precision)

        def step(number: int) -> float:
            batch = cut([[tiny_pack(seed=number)]], wrapped)
            return train_step(wrapped, optimizer, batch, config.objectives[0].build()).loss

        for number in range(steps):
            step(number)
        return model, optimizer, step

    return make


def save(run: RunFolder, step: int, model: Any, optimizer: Any) -> Path:
    return checkpoint.Saver(run, "s", Checkpoint()).save(step, model, optimizer).folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_step_is_bit_equal(trained, run: RunFolder, precision: str) -> None:
    model, optimizer, step = trained(precision)
    save(run, 2, model, optimizer)
    drawn = torch.rand(3)
    expected = [step(2), step(3)]
    model, optimizer, step = trained(precision, steps=0, seed=9)
    assert checkpoint.load(latest(run, "s"), model, optimizer) == 2
    assert torch.equal(torch.rand(3), drawn)
    assert [step(2), step(3)] == expected


def test_a_killed_save_leaves_the_one_before_it(trained, run: RunFolder) -> None:
    model, optimizer, step = trained()
    first = save(run, 2, model, optimizer)
    expected = step(2)
    # What a kill -9 in the middle of a save leaves: files, and no marker.
    half = checkpoint_path(run, "s", 3)
    shutil.copytree(first, half)
    (half / COMPLETE).unlink()
    next(half.glob("*.distcp")).write_bytes(b"half")
    assert latest(run, "s") == first
    model, optimizer, step = trained(steps=0, seed=9)
    checkpoint.load(latest(run, "s"), model, optimizer)
    assert step(2) == expected
    # The next save writes over the ruin, and only then takes the older one away.
    assert save(run, 3, model, optimizer) == latest(run, "s") == half
    assert [folder.name for folder in run.path("checkpoints", "s").iterdir()] == ["step-000003"]
    model, optimizer, _ = trained(steps=0, seed=9)
    assert checkpoint.load(half, model, optimizer) == 3


@pytest.mark.parametrize("limit", [4_000, 20_000, 100_000])  # bytes of a file: different writers fail
def test_a_save_without_room_says_so_and_leaves_the_one_before_it(trained, run: RunFolder, limit: int) -> None:
    model, optimizer, step = trained()
    first = save(run, 2, model, optimizer)
    expected = step(2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(MegaVLMError, match="after step 3 could not be written: File too large"):
            save(run, 3, model, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [*run.path("checkpoints", "s").iterdir()] == [first] == [latest(run, "s")]
    model, optimizer, step = trained(steps=0, seed=9)
    checkpoint.load(first, model, optimizer)
    assert step(2) == expected


def test_nothing_is_taken_away_before_the_new_one_is_on_disk(
    trained, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of a checkpoint, and every list of names above it, is flushed before the marker and the prune."""
    model, optimizer, _ = trained()
    run.append_metrics({"stage": "s", "step": 1})
    first = save(run, 2, model, optimizer)
    flushed, real = list[str](), os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        assert (first / COMPLETE).exists()
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(os, "fsync", fsync)
    folder = save(run, 3, model, optimizer)
    assert not first.exists()
    written_here = {path for path in folder.rglob("*") if path.suffix != ".distcp" and path.name != COMPLETE}
    assert {str(path) for path in [*written_here, folder, folder.parent, run.path("metrics.jsonl")]} <= set(flushed)
    assert flushed[-1] == str(folder)  # after the marker was renamed


def test_training_goes_on_while_a_checkpoint_is_written(trained, run: RunFolder) -> None:
    """What is on disk in the end is what was there when it began, whatever the steps meanwhile changed."""
    model, optimizer, step = trained()
    saver = checkpoint.Saver(run, "s", Checkpoint(keep_last=3))
    assert saver.start(2, model, optimizer) is None
    expected = [step(2), step(3)]
    assert saver.start(4, model, optimizer).step == 2  # never two at once
    assert (checkpoint_path(run, "s", 2) / COMPLETE).exists() and latest(run, "s") == checkpoint_path(run, "s", 2)
    expected.append(step(4))
    last = saver.finish(wait=True)
    assert last.step == 4 and last.folder == latest(run, "s") and 0 < last.stood <= last.seconds
    assert saver.finish(wait=True) is None is saver.finish(wait=False)
    for number in (2, 4):
        model, optimizer, step = trained(steps=0, seed=9)
        assert checkpoint.load(checkpoint_path(run, "s", number), model, optimizer) == number
        assert [step(k) for k in range(number, 5)] == expected[number - 2 :]


def test_no_room_for_the_tensors_is_said_at_the_next_step(trained, run: RunFolder) -> None:
    model, optimizer, step = trained()
    saver = checkpoint.Saver(run, "s", Checkpoint())
    first = saver.save(2, model, optimizer).folder
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        saver.start(3, model, optimizer)
        step(3)
        with pytest.raises(MegaVLMError, match="after step 3 could not be written: File too large"):
            while saver.finish(wait=False) is None:
                time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [*run.path("checkpoints", "s").iterdir()] == [first] == [latest(run, "s")]
    assert saver.save(4, model, optimizer).folder == latest(run, "s")  # with room again


def test_a_writer_that_is_killed_is_said_and_not_waited_for(trained, run: RunFolder) -> None:
    model, optimizer, _ = trained()
    saver = checkpoint.Saver(run, "s", Checkpoint())
    first = saver.save(2, model, optimizer).folder
    saver.start(3, model, optimizer)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(MegaVLMError, match="after step 3 could not be written: .*was killed"):
        saver.finish(wait=True)
    assert [*run.path("checkpoints", "s").iterdir()] == [first] == [latest(run, "s")]


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.fixture(params=["resume", "weights"])
def read(request: pytest.FixtureRequest) -> Callable[[Path, Any, Any], None]:
    """Both ways into a checkpoint: going on with a training, and taking the weights for anything else."""
    if request.param == "resume":
        return lambda folder, model, optimizer: checkpoint.load(folder, model, optimizer)
    return lambda folder, model, optimizer: fill(model, folder)


def test_a_pickle_in_the_index_does_not_run(trained, run: RunFolder, tmp_path: Path, read) -> None:
    model, optimizer, _ = trained()
    folder = save(run, 2, model, optimizer)
    read(folder, model, optimizer)
    (folder / INDEX).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(InputError, match="none of ours: its index asks for"):
        read(folder, model, optimizer)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_among_the_objects_does_not_run(trained, run: RunFolder, tmp_path: Path, read) -> None:
    model, optimizer, _ = trained()
    folder = save(run, 2, model, optimizer)
    torch.save({"optimizer": Payload(tmp_path / "ran")}, folder / "common.pt")
    with pytest.raises(InputError, match="none of ours"):
        read(folder, model, optimizer)
    assert not (tmp_path / "ran").exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
