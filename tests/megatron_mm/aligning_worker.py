"""What the ranks of test_aligning_layouts.py run: training steps with patch aligning on several layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import PackedBatch, Sizes
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.objectives.loss import Sum
from megavlm.megatron_mm.tiles import VariedTiles
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping
from megavlm.megatron_mm.training.overlap import overlaps

STEPS, CELL, LENGTH = 3, 8, 128
TEACHER = {"name": "clip", "image_size": 32, "patch_size": 4, "layers": 3, "hidden": 16, "heads": 2, "ffn": 24}
ALIGNING = {
    "name": "patch_aligning", "every": 2, "width": 16, "heads": 2, "side": 32, "teacher_weights": "random",
    "teacher": TEACHER, "weight": 0.7,
}  # fmt: skip
SIZES: list[Sizes] = [((64, 24), (8, 64)), ((40, 64),), (), ((64, 64), (64, 8), (16, 64))]  # of the tiles of each pack
LAYOUTS = {
    2: {"tp2": {"tp": 2}, "sequence parallel": {"tp": 2, "sequence_parallel": True}, "pp2": {"pp": 2},
        "interleaved": {"pp": 2, "vp": 2}, "dp2": {}},
    4: {"tp2 pp2": {"tp": 2, "pp": 2}, "tp2 pp2 sequence parallel": {"tp": 2, "pp": 2, "sequence_parallel": True}},
}  # fmt: skip
TRAIN = ["encoder", "connector", "decoder", "objectives"]


def model_config(scale: int = 1, **aligning: Any) -> ModelConfig:
    """`scale` 2: tiles of twice the side, four of whose cells meet one of the teacher's features."""
    sizes = {"layers": 4, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 96}
    return ModelConfig.parse(
        {
            "tiling": {"name": "longer_side", "tile": 64 * scale, "side_step": CELL * scale},
            "encoder": {
                "name": "eve",
                "image_size": 64 * scale,
                "patch_size": 4,
                "pool": 2,
                "channels": 24,
                "heads": 3,
            },
            "connector": {"name": "image_rows", "heads": 3},
            "injection": {"name": "inline", "tags": "none"},
            "decoder": {"name": "llama", **sizes, "max_positions": 1024, "rope_base": 1e4, "norm_eps": 1e-5},
            "objectives": [{"name": "next_token"}, ALIGNING | aligning],
        }
    )


def pack(seed: int, sizes: Sizes, config: ModelConfig, length: int = LENGTH) -> PackedBatch:
    """Images one after the other from the third token on, all in one sample but for the last five tokens."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 96, (1, length), generator=draw)
    pixels = sum(3 * height * width for height, width in sizes)
    lengths = [length - 5, 5]
    return PackedBatch(
        tokens=tokens,
        labels=tokens.roll(-1, 1),
        loss_weights=torch.rand(1, length, generator=draw),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        tiles=VariedTiles(torch.randint(0, 256, (pixels,), generator=draw).to(torch.uint8), sizes),
        visual_index=torch.arange(2, 2 + sum(config.tokens_of(size) for size in sizes)),
        sizes=sizes,
    )


def run_layout(parallel: Parallel, recompute: str = "none") -> list[list[Any]]:
    """Per step the loss, each objective's, the gradient norm, tokens and targets; last the sum of the teacher."""
    backend.init_distributed(parallel, seed=1)
    config = model_config()
    model = build_model(config, backend.build_context(parallel, recompute=recompute))  # type: ignore[arg-type]
    backend.initialise(model, seed=5)
    model.freeze(TRAIN)
    wrapped = wrapping.wrap(model, overlap=overlaps(parallel))
    for stage in wrapped.stages:
        stage.train()
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-3, weight_decay=0.0))
    replicas, steps = dist.get_world_size() // parallel.split, []
    for step in range(STEPS):
        packs = [pack(100 * step + i, sizes, config) for i, sizes in enumerate(SIZES)]
        batch = training.cut([packs[rank::replicas] for rank in range(replicas)], wrapped)
        done = training.train_step(wrapped, optimizer, batch, Sum(config))
        steps.append([done.loss, done.parts["patch_aligning"], done.grad_norm, done.tokens, done.targets])
    assert model.teacher is not None
    return [*steps, [float(sum(p.sum() for p in model.teacher.parameters()))]]


if __name__ == "__main__":
    world, out = int(sys.argv[1]), Path(sys.argv[2])
    found = {name: run_layout(Parallel(**sizes)) for name, sizes in LAYOUTS[world].items()}
    if world == 2:
        found["pp2, recomputed"] = run_layout(Parallel(pp=2), recompute="full")
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    backend.shutdown()
