"""What the ranks of test_layouts.py run: training that goes on from a checkpoint, each time on another layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import parallel_worker as shapes
import torch.distributed as dist

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import latest
from megavlm.megatron_mm.config import Checkpoint, Optimizer, Parallel
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training import checkpoint, wrapping
from megavlm.megatron_mm.training import step as training
from megavlm.platform.runs import RunFolder

STEPS, EACH, PACKS = 30, 5, 4
LAYOUTS = [
    {"tp": 2, "pp": 2},
    {},
    {"tp": 2, "cp": 2},
    {"pp": 2, "vp": 2},
    {"pp": 4, "first_stage_layers": 1},
    {"tp": 2, "sequence_parallel": True},
]
OPTIONS = Optimizer.parse({"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 3, "groups": {"encoder": {"lr": 2e-3}}})


def train(run: RunFolder, parallel: Parallel, stop: int) -> list[list[float]]:
    """From the newest checkpoint, or from nothing, to update `stop`; saves there. Loss and gradient norm by step."""
    backend.init_distributed(parallel, seed=1)
    config = shapes.model_config()
    model = build_model(config, backend.build_context(parallel))
    newest = latest(run, "s")
    if newest is None:
        backend.initialise(model, seed=5)
    wrapped = wrapping.wrap(model)
    optimizer = wrapping.make_optimizer(wrapped, OPTIONS)
    first = checkpoint.load(newest, model, optimizer) if newest else 0
    replicas, told = dist.get_world_size() // parallel.split, []
    for step in range(first, stop):
        wrapping.set_rate(optimizer, OPTIONS, step, STEPS)
        packs = [shapes.pack(100 * step + k, with_images=k % 3 != 1) for k in range(PACKS)]
        batch = training.cut([packs[rank::replicas] for rank in range(replicas)], wrapped)
        done = training.train_step(wrapped, optimizer, batch, config.objectives[0].build())
        told.append([done.loss, done.grad_norm])
    checkpoint.Saver(run, "s", Checkpoint()).save(stop, model, optimizer)
    return told


def folder(out: Path, name: str) -> RunFolder:
    if dist.get_rank() == 0:
        RunFolder.create(out / name, {}, {}, [])
    dist.barrier()
    return RunFolder.open(out / name)


def main(out: Path) -> None:
    backend.start_processes()
    results: dict[str, list[list[float]]] = {"whole": train(folder(out, "whole"), Parallel(tp=2, pp=2), STEPS)}
    for name, layouts in (("same", LAYOUTS[:1] * 2), ("other", LAYOUTS)):
        run, results[name] = folder(out, name), []
        for number, options in enumerate(layouts, start=1):
            results[name] += train(run, Parallel(**options), number * EACH)
    if dist.get_rank() == 0:
        (out / "results.json").write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":  # a save may start processes that import this file
    main(Path(sys.argv[1]))
