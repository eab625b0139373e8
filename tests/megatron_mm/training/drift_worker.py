"""What the ranks of test_drift_layouts.py run: the drift of one model from another, on every layout of two ranks.

Writes LAYOUT.npz (the reference) and results.json: layout -> KL of the model from itself and of another one from
it; and steps with looks between them and without, where gradients are summed while the model computes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import parallel_worker as shapes
import torch
import torch.distributed as dist

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Optimizer, Parallel
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping
from megavlm.megatron_mm.training.watchers.passes import untouched
from megavlm.megatron_mm.training.watchers.reference import Reference, kl, measure
from megavlm.megatron_mm.training.watchers.texts import Texts

LENGTH, TOP = 48, 7
LAYOUTS = {**shapes.LAYOUTS[2], "dp2": {}}
SPREAD = 8.0  # of the output layer: as drawn, all tokens are about equally likely


def texts() -> Texts:
    """Nine texts of several lengths, an answer at the end of each; more packs than a replica has, and not as many."""
    draw = np.random.default_rng(3)
    lengths = [5, 17, 30, 48, 12, 41, 9, 22, 7]
    target = np.concatenate([np.arange(n) >= max(1, n // 3) for n in lengths])
    return Texts(draw.integers(0, 96, sum(lengths)), target, np.cumsum([0, *lengths]))


def build(parallel: Parallel, seed: int) -> VisionLanguageModel:
    backend.init_distributed(parallel, seed=1)
    model = build_model(shapes.model_config(vocab=97), backend.build_context(parallel))
    return draw(model, seed)


def draw(model: VisionLanguageModel, seed: int) -> VisionLanguageModel:
    backend.initialise(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "output_layer" in name:
                parameter.mul_(SPREAD)
    return model


def drifts(parallel: Parallel) -> tuple[Reference, list[float]]:
    """The reference, on every rank, and KL of the model that it is of, and of another."""
    model = build(parallel, seed=5)
    with untouched(model):
        told = [measure(model, texts(), LENGTH, TOP, lambda: None)]
        dist.broadcast_object_list(told, src=0)
        (reference,) = told
        assert reference is not None
        found = [kl(model, reference, LENGTH, lambda: None)]
        found.append(kl(draw(model, seed=6), reference, LENGTH, lambda: None))
    return reference, found


def steps(looks: bool) -> list[list[float]]:
    """Loss and gradient norm of four steps with overlap on two replicas, a look after the second and the third."""
    parallel = Parallel(overlap=True)
    model = build(parallel, seed=5)
    with untouched(model):
        shared = [measure(model, texts(), LENGTH, TOP, lambda: None) if looks else None]
    dist.broadcast_object_list(shared, src=0)
    wrapped = wrapping.wrap(model, overlap=True, bucket=2000)
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-2))
    told = []
    for step in range(4):
        packs = [shapes.pack(100 * step + k, with_images=k % 2 == 0) for k in range(4)]
        batch = training.cut([packs[rank::2] for rank in range(2)], wrapped)
        done = training.train_step(wrapped, optimizer, batch, model.spec.objectives[0].build())
        told.append([done.loss, done.grad_norm])
        if shared[0] is not None and step in (1, 2):
            with untouched(wrapped.settled()):
                kl(wrapped.settled(), shared[0], LENGTH, lambda: None)
    return told


def main(out: Path) -> None:
    backend.start_processes()
    results: dict[str, list] = {}
    for layout, options in LAYOUTS.items():
        reference, results[layout] = drifts(Parallel(**options))
        if dist.get_rank() == 0:
            np.savez(out / f"{layout}.npz", ids=reference.ids, logprobs=reference.logprobs)
    results["plain"], results["looked at"] = steps(looks=False), steps(looks=True)
    if dist.get_rank() == 0:
        (out / "results.json").write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
