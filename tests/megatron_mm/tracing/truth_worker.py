"""What the ranks of test_truth.py run: one step of a mini recipe for real, its bytes counted by torch's allocator."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.objectives.loss import Sum
from megavlm.megatron_mm.planning.load import load_of
from megavlm.megatron_mm.tracing import phases
from megavlm.megatron_mm.tracing.batch import step_batch
from megavlm.megatron_mm.tracing.rank import built
from megavlm.megatron_mm.training.step import train_step
from megavlm.platform.config import load_recipe

MARK = "phase of the step: "


def cases(text: str) -> list[tuple[str, str, list[str]]]:
    """[[recipe, stage, overrides]] as JSON."""
    return [(recipe, stage, list(changes)) for recipe, stage, changes in json.loads(text)]


def spec_of(recipe: str, stage: str, changes: list[str]) -> StageData:
    return StageData.of(load_recipe(recipe, [f"stages.{stage}.{change}" for change in changes]), stage)


class Marks:
    """Phases as events of the profile, one after the other."""

    def __init__(self) -> None:
        self._open: Any = None

    def begin(self, phase: str) -> None:
        self.end()
        self._open = record_function(MARK + phase).__enter__()

    def end(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = None


def step(spec: StageData) -> dict[str, int]:
    """Peak of each phase in bytes, from the sum of what the allocator gave and took back since before the model.

    The profile hears of this thread alone, and some of what is given to gloo is freed by gloo's, where this one lets it
    go first: "adrift" is how much of the sum at the end no tensor holds.
    """
    backend.init_distributed(spec.stage.parallel, spec.seed)
    before, marks = held(), Marks()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        marks.begin("build")
        wrapped, optimizer = built(spec)
        marks.begin("draw")
        backend.initialise(wrapped.model, spec.seed)
        batch = step_batch(spec, wrapped.lookers.seat, load_of(spec), zeros)
        gc.collect()
        with phases.told(marks.begin):
            result = train_step(wrapped, optimizer, batch, Sum(spec.model))
        marks.end()
        gc.collect()
        del batch
    assert result.updated
    found, left = peaks(seen.profiler.kineto_results.events())
    return found | {"adrift": left - (held() - before)}


def held() -> int:
    """Bytes of all tensors that Python knows, views counted once."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and not each.is_meta]
    storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """After each collective, time for gloo's thread to let go of its tensors."""
    wait = dist.Work.wait

    def waited(work: dist.Work, *words: Any) -> bool:
        done = wait(work, *words)
        time.sleep(0.002)
        return done

    dist.Work.wait = waited
    try:
        yield
    finally:
        dist.Work.wait = wait


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def peaks(events: Any) -> tuple[dict[str, int], int]:
    """Of each phase, and what is left at the end."""
    alive, found = 0, {}
    begins = sorted((e.start_ns(), e.name()[len(MARK) :]) for e in events if e.name().startswith(MARK))
    moves = sorted((e.start_ns(), k, e.nbytes()) for k, e in enumerate(events) if e.name() == "[memory]")
    phase = None
    for at, _, size in moves:
        while begins and begins[0][0] <= at:
            phase = begins.pop(0)[1]
            found[phase] = alive
        alive += size
        if phase is not None:
            found[phase] = max(found[phase], alive)
    return found, alive


def main(out: Path, told: str) -> None:
    with patience():
        results = [step(spec_of(*case)) for case in cases(told)]
    (out / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(results))
    dist.barrier()
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
