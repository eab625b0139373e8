"""What the ranks of test_parallel_fusions.py run: training steps of every fusion and expert on several layouts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping
from megavlm.megatron_mm.training.overlap import overlaps

TILE, STEPS, WORDS = 64, 3, 7
LAYOUTS = {
    2: {"tp2": {"tp": 2}, "tp2 sequence parallel": {"tp": 2, "sequence_parallel": True}, "pp2": {"pp": 2}, "dp2": {}},
}
VIT = {"hidden": 32, "heads": 4, "ffn": 48}
EXPERTS: dict[str, dict[str, Any]] = {
    "clip": {"name": "clip", **VIT, "image_size": 32, "patch_size": 8, "layers": 2, "layer": -1},
    "convnext": {"name": "convnext", "image_size": TILE, "depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24]},
    "sam": {
        "name": "sam", **VIT, "image_size": TILE, "patch_size": 8, "layers": 2, "window": 3, "global_layers": [1],
        "neck_channels": 8,
    },
    "eva": {
        "name": "eva02", **VIT, "image_size": TILE, "trained_size": 32, "patch_size": 8, "layers": 3, "window": 4,
        "rope_side": 4,
    },
    "p2s": {
        "name": "pix2struct", **VIT, "image_size": TILE, "patch_size": 8, "max_patches": 18, "positions": 20,
        "layers": 2,
    },
    "dinov2": {
        "name": "dinov2", **VIT, "ffn": 64, "image_size": 56, "trained_size": 42, "patch_size": 14, "layers": 2,
    },
}  # fmt: skip


class Case(NamedTuple):
    """A model, what of it is trained, visual tokens per tile, and whether the packs have images."""

    encoder: dict[str, Any]
    connector: dict[str, Any]
    each: int
    train: list[str]
    images: bool = True


def mixture(*keys: str) -> dict[str, Any]:
    return {"name": "mixture", "image_size": TILE, "experts": EXPERTS, "use": list(keys), "normalisation": "shared"}


ALL = ["encoder", "connector", "decoder"]
LAYERS = {**EXPERTS["clip"], "image_size": TILE, "patch_size": 16, "layers": 4, "layer": [1, 2, 4]}
HR = {"low": EXPERTS["clip"], "high": EXPERTS["convnext"], "after": [1], "kernel": 3}
CASES = {
    "channels of six experts": Case(mixture(*EXPERTS), {"name": "channel_concat", "grid": 4}, 16, ALL),
    "tokens of two experts": Case(mixture("clip", "convnext"), {"name": "sequence_append", "grid": 4}, 32, ALL),
    "llava_hr": Case({"name": "llava_hr", "image_size": TILE, **HR}, {"name": "mlp"}, 16, ALL),
    "windows": Case(mixture("clip", "eva"), {"name": "windows", "grid": 4, "dim": 16}, 16, ALL),
    "deformable": Case(
        mixture("clip", "eva", "sam"), {"name": "deformable", "grid": 4, "heads": 4, "points": 2}, 16, ALL
    ),
    "mmfuser": Case(LAYERS, {"name": "mmfuser", "levels": 2, "heads": 4, "points": 2}, 16, ALL),
    "rows of an image": Case(
        {"name": "eve", "image_size": TILE, "patch_size": 8, "channels": 16}, {"name": "image_rows"}, 21, ALL
    ),
    "rows without an MLP": Case(
        {"name": "eve_v2", "image_size": TILE, "patch_size": 8, "hidden": 16, "channels": 32},
        {"name": "image_rows", "class_attention": False, "layers": 0},
        21,
        ALL,
    ),
    "layers": Case(LAYERS, {"name": "multi_layer", "mode": "fpn", "fpn_channels": 16}, 16, ALL),
    "one of two experts frozen": Case(
        mixture("clip", "sam"), {"name": "channel_concat", "grid": 4}, 16, ["encoder.sam", "connector", "decoder"]
    ),
    "text alone": Case(mixture("clip", "p2s"), {"name": "channel_concat", "grid": 4}, 16, ALL, images=False),
}


def model_config(case: Case) -> ModelConfig:
    sizes = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 96}
    tiling = {"name": "square", "tile": TILE}
    return ModelConfig.parse(
        {
            "tiling": tiling,
            "encoder": case.encoder,
            "connector": case.connector,
            "injection": {"name": "inline", "tags": "none"},
            "decoder": {"name": "llama", **sizes, "max_positions": 256, "rope_base": 1e4, "norm_eps": 1e-5},
        }
    )


def pack(seed: int, case: Case, with_images: bool) -> PackedBatch:
    """Two samples of an image and some words each, and one of words; all packs are as long."""
    draw = torch.Generator().manual_seed(seed)
    lengths = [case.each + WORDS, case.each + 2 * WORDS, WORDS + 4]
    tokens = torch.randint(0, 96, (1, sum(lengths)), generator=draw)
    images = 2 if case.images and with_images else 0
    starts = [2, lengths[0] + 2][:images]
    return PackedBatch(
        tokens=tokens,
        labels=tokens.roll(-1, 1),
        loss_weights=torch.rand(1, sum(lengths), generator=draw),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        tiles=torch.randint(0, 256, (images, 3, TILE, TILE), generator=draw).to(torch.uint8),
        visual_index=torch.tensor([place for start in starts for place in range(start, start + case.each)]).long(),
    )


def run_layout(parallel: Parallel) -> dict[str, dict[str, Any]]:
    """What run_case tells of every case."""
    backend.init_distributed(parallel, seed=1)
    return {name: run_case(parallel, case) for name, case in CASES.items()}


def run_case(parallel: Parallel, case: Case) -> dict[str, Any]:
    """Per step loss, gradient norm, tokens and targets; and the parts of the model that learnt."""
    config = model_config(case)
    model = build_model(config, backend.build_context(parallel))
    backend.initialise(model, seed=5)
    model.freeze(case.train)
    before = {part: list(weights.values()) for part, weights in held(model).items()}
    wrapped = wrapping.wrap(model, overlap=overlaps(parallel))
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-3, weight_decay=0.0))
    replicas, steps = dist.get_world_size() // parallel.split, []
    for step in range(STEPS):
        packs = [pack(100 * step + i, case, with_images=i != 1) for i in range(2)]
        batch = training.cut([packs[rank::replicas] for rank in range(replicas)], wrapped)
        done = training.train_step(wrapped, optimizer, batch, config.objectives[0].build())
        steps.append([done.loss, done.grad_norm, done.tokens, done.targets])
    after = {part: list(weights.values()) for part, weights in held(model).items()}
    moved = [part for part in before if any(not a.equal(b) for a, b in zip(before[part], after[part], strict=True))]
    return {"steps": steps, "moved": moved}


def held(model: VisionLanguageModel) -> dict[str, dict[str, torch.Tensor]]:
    """Part -> this rank's weights of it: the tower's by the first two components of their names, and the decoder's."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for axis in ("encoder", "connector", "decoder"):
        for name, p in model.axis(axis):
            part = axis if axis == "decoder" else ".".join([axis, *name.split(".")[:2]])
            found.setdefault(part, {})[name] = p.detach().clone()
    return found


def main(out: Path) -> None:
    results = {
        layout: run_layout(Parallel(**options)) for layout, options in LAYOUTS[int(os.environ["WORLD_SIZE"])].items()
    }
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
