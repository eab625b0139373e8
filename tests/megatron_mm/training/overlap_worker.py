"""What the ranks of test_overlap.py run: the same steps with overlap and without, on layouts of two processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import parallel_worker as shapes
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.module import MegatronModule

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend.transformer import transformer_config
from megavlm.megatron_mm.checkpoints.listing import latest
from megavlm.megatron_mm.config import Checkpoint, Optimizer, Parallel
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training import checkpoint, wrapping
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training.overlap import Overlap
from megavlm.platform.runs import RunFolder

LAYOUTS = {"dp2": {}, "cp2": {"cp": 2}, "dp2, frozen tower": {}, "dp2, frozen decoder": {}, "dp2, bf16": {}}
TRAINED = {"dp2, frozen tower": ["decoder"], "dp2, frozen decoder": ["connector"]}
IMAGES = [True, False, False, True, False]  # with two replicas: 0, 2, 4 and 1, 3, so that only one ends with an image
STEPS, BUCKET = 4, 2000  # the decoder has some 40,000 parameters
# Not clipped, since a norm adds up in the order of the buckets: what remains is bit-equal.


def train(layout: str, overlap: bool, run: RunFolder | None = None, stop: int = STEPS) -> dict[str, list]:
    """From nothing, or from the run's checkpoint; with a run the end is saved there."""
    parallel, precision = Parallel(**LAYOUTS[layout]), "bf16" if "bf16" in layout else "fp32"
    backend.init_distributed(parallel, seed=1)
    config = shapes.model_config()
    model = build_model(config, backend.build_context(parallel, precision))
    backend.initialise(model, seed=5)
    model.freeze(TRAINED.get(layout, ["encoder", "connector", "decoder"]))
    wrapped = wrapping.wrap(model, precision, overlap, bucket=BUCKET)
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-2, clip=0.0), precision)
    replicas, told = dist.get_world_size() // parallel.split, []
    newest = latest(run, "s") if run else None
    first = checkpoint.load(newest, model, optimizer) if newest else 0
    for step in range(first, stop):
        images = IMAGES if step != 2 else 5 * [False]
        packs = [shapes.pack(100 * step + k, with_images) for k, with_images in enumerate(images)]
        batch = training.cut([packs[rank::replicas] for rank in range(replicas)], wrapped)
        done = training.train_step(wrapped, optimizer, batch, config.objectives[0].build())
        told.append([done.loss, done.grad_norm])
    if run:
        checkpoint.Saver(run, "s", Checkpoint()).save(stop, wrapped.settled(), optimizer)
    weights = [float(p.detach().double().abs().sum()) for p in wrapped.settled().parameters()]
    buckets = [len(part.bucket_groups) for part in wrapped.trained]
    return {"steps": told, "weights": weights, "buckets": buckets}


def resumed(out: Path) -> list:
    """Two steps with overlap, and from their checkpoint the others without."""
    if dist.get_rank() == 0:
        RunFolder.create(out / "run", {}, {}, [])
    dist.barrier()
    run = RunFolder.open(out / "run")
    return train("dp2", True, run, 2)["steps"] + train("dp2", False, run)["steps"]


class Branch(MegatronModule):
    """Three layers, of which the one in the middle may be left out: as layers that only a pack with images meets."""

    def __init__(self) -> None:
        shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
        super().__init__(config=transformer_config(backend.build_context(Parallel()), **shape))
        self.first, self.middle, self.last = (torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, whole: bool) -> torch.Tensor:
        hidden = self.first(x)
        return self.last(self.middle(hidden) if whole else hidden)


def branches() -> list[float]:
    """How far sums of three buckets are from autograd's. In the second step rank 1 meets no middle layer; in the third
    each meets the first layer once more after the others' sums began."""
    backend.init_distributed(Parallel(), seed=1)
    model = Branch()
    switches = {"overlap_grad_reduce": True, "overlap_param_gather": True, "align_param_gather": True}
    config = DistributedDataParallelConfig(use_distributed_optimizer=True, bucket_size=70, **switches)
    part = DistributedDataParallel(config=model.config, ddp_config=config, module=model)
    assert len(part.bucket_groups) == 3
    overlap, off = Overlap([part], None), []
    for step in range(3):
        part.zero_grad_buffer()
        with overlap.step(late=model.first.parameters() if step == 2 else ()):
            forward(part, step, dist.get_rank()).backward()
            if step == 2:
                model.first(inputs(step, dist.get_rank())).sum().backward()
        part.finish_grad_sync()
        overlap.gather()
        off.append(difference(part, step))
    return off


def inputs(step: int, rank: int) -> torch.Tensor:
    return torch.full((1, 8), 1.0 + rank + step)


def forward(model: torch.nn.Module, step: int, rank: int) -> torch.Tensor:
    return model(inputs(step, rank), step != 1 or rank == 0).sum()


def difference(part: DistributedDataParallel, step: int) -> float:
    """Between this rank's share of the buckets and the same by plain autograd over both ranks' inputs."""
    plain = Branch()
    plain.load_state_dict(part.module.state_dict())
    for rank in range(2):
        forward(plain, step, rank).backward()
        if step == 2:
            plain.first(inputs(step, rank)).sum().backward()
    wanted = dict(zip(part.module.parameters(), (p.grad for p in plain.parameters()), strict=True))
    found = []
    for bucket in (group.buckets[0] for group in part.bucket_groups):
        whole = torch.zeros_like(bucket.grad_data)
        for parameter in bucket.params:
            start = parameter.main_grad.storage_offset() - bucket.grad_data.storage_offset()
            whole[start : start + parameter.numel()] = wanted[parameter].flatten()
        mine = [data.chunk(2)[dist.get_rank()] for data in (bucket.grad_data, whole)]
        assert mine[1].abs().max() > 0
        found.append((mine[0] - mine[1]).abs().max())
    worst = torch.stack(found).max()
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)


def main(out: Path) -> None:
    results = {layout: [train(layout, overlap) for overlap in (False, True)] for layout in LAYOUTS}
    results["resumed"] = resumed(out.parent)
    results["branches"] = branches()
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":  # a save may start processes that import this file
    main(Path(sys.argv[1]))
