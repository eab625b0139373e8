"""What the ranks of test_parallel_nvlm.py run: training steps of NVLM-X and -H on every layout of this world size."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import Context, PackedBatch
from megavlm.megatron_mm.inference.passing import forward, told
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping
from megavlm.megatron_mm.training.overlap import overlaps

LAYOUTS = {
    2: {
        "tp2": {"tp": 2},
        "tp2 sequence parallel": {"tp": 2, "sequence_parallel": True},
        "pp2": {"pp": 2},
        "pp2 interleaved": {"pp": 2, "vp": 2},
        "cp2": {"cp": 2},
        "dp2": {},
        "dp2 overlapped": {"overlap": True},
    },
    4: {
        "tp2 pp2 sequence parallel": {"tp": 2, "pp": 2, "sequence_parallel": True},
        "pp2 cp2": {"pp": 2, "cp": 2},
        "dp2 pp2 overlapped": {"pp": 2, "overlap": True},
    },
}
EVERYTHING = ["encoder", "connector", "injection", "decoder"]
CASES: dict[str, tuple[dict[str, Any], list[str], dict[str, str]]] = {
    "x": ({"name": "cross_attention", "every": 2}, EVERYTHING, {}),
    "x recomputed": ({"name": "cross_attention", "every": 2}, EVERYTHING, {"recompute": "full"}),
    "x, frozen decoder": ({"name": "cross_attention", "every": 2, "kv_heads": 4}, ["injection", "connector"], {}),
    "h": ({"name": "hybrid", "every": 2}, EVERYTHING, {}),
    "h, before, with its own feed-forward": (
        {"name": "hybrid", "every": 3, "first": 0, "where": "before", "ffn": True, "gate_size": "channel"},
        EVERYTHING,
        {},
    ),
}
TEXTS = (17, 23, 8)  # the third sample has no image
EACH, TAG = 4, 2  # visual tokens of a tile, text tokens of a tag


def model_config(injection: dict[str, Any], layers: int = 4) -> ModelConfig:
    connector = {"layers": 1} if injection["name"] == "cross_attention" else {"hidden": 48}
    return ModelConfig.parse(
        {
            "tiling": {"tile": 28},
            "encoder": {
                "name": "internvit", "image_size": 28, "patch_size": 7,
                "layers": 1, "hidden": 32, "heads": 4, "ffn": 64,
            },
            "connector": {"name": "pixel_shuffle_mlp", **connector},
            "injection": injection if injection["name"] == "inline" else {"gate_init": 0.5, **injection},
            "decoder": {
                "name": "qwen2", "layers": layers, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 96,
            },
        }
    )  # fmt: skip


def pack(seed: int, hybrid: bool, with_images: bool = True, lengths: tuple[int, ...] = TEXTS) -> PackedBatch:
    """Samples of these lengths, an image of 2 tiles and a thumbnail at the third token of all but the last one."""
    draw = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    tokens = torch.randint(0, 96, (1, total), generator=draw)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    images = len(lengths) - 1 if with_images else 0
    tiles, since, until, ids, named, inline, places = [], [], [], [], [], [], []
    tags = torch.full((1, total), -1)
    for image, (start, end) in enumerate(zip(ends[:images].tolist(), ends[1:].tolist(), strict=False)):
        for tile in range(2 if hybrid else 3):
            tiles.append(3 * image + tile)
            since.append(start + 2 + (0 if hybrid else TAG * tile))
            until.append(end)
            if hybrid:
                ids += torch.randint(0, 96, (TAG,), generator=draw).tolist()
                named += [len(tiles) - 1] * TAG
            else:
                tags[0, since[-1] : since[-1] + TAG] = len(tiles) - 1
        if hybrid:
            inline.append(3 * image + 2)
            places += range(start + 2, start + 2 + EACH)
    numbers = [torch.tensor(values, dtype=torch.int64) for values in (tiles, since, until)]
    return PackedBatch(
        tokens=tokens,
        labels=tokens.roll(-1, 1),
        loss_weights=torch.rand(1, total, generator=draw),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=ends.int(),
        tiles=torch.randint(0, 256, (3 * images, 3, 28, 28), generator=draw).to(torch.uint8),
        visual_index=torch.tensor(places, dtype=torch.int64),
        inline_tiles=torch.tensor(inline, dtype=torch.int64),
        context=Context(*numbers, tags, *(torch.tensor(values, dtype=torch.int64) for values in (ids, named))),
    )


def run_layout(parallel: Parallel) -> dict[str, list[Any]]:
    """Every case, by step: loss, gradient norm, tokens, targets; last, where inference runs, a number of all logits."""
    backend.init_distributed(parallel, seed=1)
    return {case: run_case(parallel, *what) for case, what in CASES.items()}


def run_case(parallel: Parallel, injection: dict[str, Any], train: list[str], options: dict[str, str]) -> list[Any]:
    config = model_config(injection)
    model = build_model(config, backend.build_context(parallel, **options))
    backend.initialise(model, seed=5)
    model.freeze(train)
    wrapped = wrapping.wrap(model, overlap=overlaps(parallel), bucket=2000)
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-3, weight_decay=0.01))
    replicas = dist.get_world_size() // parallel.split
    results = []
    for step in range(3):
        packs = [pack(100 * step + i, injection["name"] == "hybrid", with_images=i != 1) for i in range(4)]
        batch = training.cut([packs[rank::replicas] for rank in range(replicas)], wrapped)
        done = training.train_step(wrapped, optimizer, batch, config.objectives[0].build())
        results.append([done.loss, done.grad_norm, done.tokens, done.targets])
    if parallel.cp == parallel.vp == 1 and not parallel.sequence_parallel:  # what inference runs on
        results.append([heard(model.eval(), replace(pack(9, injection["name"] == "hybrid"), labels=None))])
    return results


def heard(model: VisionLanguageModel, prompt: PackedBatch) -> float:
    """One number of all logits, the same on every rank."""
    logits = forward(model, prompt, gather_logits=True)
    draw = torch.Generator().manual_seed(1)
    weights = torch.randn(1, prompt.length, 96, generator=draw)
    return told(None if logits is None else (logits * weights).sum()[None], (1,)).item()


def main(out: Path) -> None:
    results = {
        layout: run_layout(Parallel(**options)) for layout, options in LAYOUTS[int(os.environ["WORLD_SIZE"])].items()
    }
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
