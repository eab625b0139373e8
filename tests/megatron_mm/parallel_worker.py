"""What torchrun starts in test_parallel.py: three training steps of every case on every layout of this world size."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend import cpu
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.training import step as training

LAYOUTS = {
    1: {"one": {}},
    2: {
        "tp2": {"tp": 2},
        "tp2 sequence parallel": {"tp": 2, "sequence_parallel": True},
        "pp2": {"pp": 2},
        "pp2 interleaved": {"pp": 2, "vp": 2},
        "cp2": {"cp": 2},
        "dp2": {},
    },
    3: {"dp3": {}},  # the global batch has four packs: two for one replica, one for each of the others
    4: {
        "tp2 pp2": {"tp": 2, "pp": 2},
        "dp2 tp2": {"tp": 2},
        "dp2 pp2": {"pp": 2},
        "pp2 cp2": {"pp": 2, "cp": 2},
        "pp4 uneven": {"pp": 4, "first_stage_layers": 1, "last_stage_layers": 1},
        "tp2 pp2 sequence parallel": {"tp": 2, "pp": 2, "sequence_parallel": True},
    },
}
CASES = {  # which packs of the global batch have images; with two replicas, "mixed" gives them all to the first
    "images": ([True] * 4, {}, ["encoder", "connector", "decoder"]),
    "text": ([False] * 4, {}, ["encoder", "connector", "decoder"]),
    "mixed": ([True, False, True, False], {}, ["encoder", "connector", "decoder"]),
    "frozen decoder": ([True, False, True, False], {}, ["connector"]),
    "twenty steps": ([True, False, True, False], {}, ["encoder", "connector", "decoder"], 20),
    "tied, padded vocabulary": ([True, False, True, False], {"tied": True, "vocab": 97}, ["encoder", "decoder"]),
}
SEQUENCE, TILES, STEPS = 48, 3, 3


def model_config(**decoder: object) -> ModelConfig:
    shape = {"layers": 4, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 96}
    return ModelConfig.parse(
        {
            "tiling": {"tile": 28},
            "encoder": {
                "name": "internvit", "image_size": 28, "patch_size": 7,
                "layers": 2, "hidden": 32, "heads": 4, "ffn": 64,
            },
            "connector": {"name": "pixel_shuffle_mlp", "hidden": 48},
            "injection": {"name": "inline"},
            "decoder": {"name": "qwen2", **shape, **decoder},
        }
    )  # fmt: skip


def pack(seed: int, with_images: bool) -> PackedBatch:
    """Three samples of unequal length, tiles in the first two, loss weights of several sizes."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 96, (1, SEQUENCE), generator=draw)
    labels, weights = tokens.roll(-1, 1), torch.rand(1, SEQUENCE, generator=draw)
    labels[0, :5] = -100
    ends = torch.tensor([0, 17, 40, SEQUENCE], dtype=torch.int32)
    tiles = torch.randint(0, 256, (TILES if with_images else 0, 3, 28, 28), generator=draw).to(torch.uint8)
    places = torch.cat([torch.arange(2, 10), torch.arange(20, 24)])[: 4 * len(tiles)]
    positions = torch.cat([torch.arange(n) for n in ends.diff().tolist()])[None]
    return PackedBatch(tokens, labels, weights, positions, ends, tiles, places)


def sight(model: VisionLanguageModel) -> float:
    """What became of the tower: where the gradients were wrong on any rank, or its copies differ, it would tell."""
    weights = torch.stack([model.tower.encoder.embedding.class_token.sum(), model.tower.connector.norm.weight.sum()])
    copies = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, weights.detach())
    return weights.double().sum().item() if all(torch.equal(copy, copies[0]) for copy in copies) else float("nan")


def run_case(
    parallel: Parallel, has_images: list[bool], decoder: dict, train: list[str], steps: int = STEPS
) -> list[list[float]]:
    backend.init_distributed(parallel, seed=1)
    config = model_config(**decoder)
    model = build_model(config, backend.build_context(parallel))
    backend.initialise(model, seed=5)
    model.freeze(train)
    wrapped = training.wrap(model)
    optimizer = training.make_optimizer(wrapped, Optimizer(lr=1e-2, weight_decay=0.01))
    replicas = dist.get_world_size() // parallel.split
    results = []
    for step in range(steps):
        packs = [pack(100 * step + i, with_images) for i, with_images in enumerate(has_images)]
        batch = training.cut([packs[rank::replicas] for rank in range(replicas)], wrapped.lookers)
        done = training.train_step(wrapped, optimizer, batch, config.objectives[0].build())
        results.append([done.loss, done.grad_norm, sight(model), done.tokens, done.targets])
    return results


def scatter_of_views() -> dict[str, bool]:
    """Whether gloo scatters columns of a matrix rightly, with our seam and without."""

    def right() -> bool:
        whole = torch.arange(12.0).view(3, 4)
        mine = torch.empty(3, 2)
        dist.scatter(mine, list(whole.chunk(2, dim=1)) if dist.get_rank() == 0 else None, src=0)
        return torch.equal(mine, whole.chunk(2, dim=1)[dist.get_rank()])

    results = {"with": right()}
    with cpu.without("scatter"):
        results["without"] = right()
    wrong = torch.tensor([not results["with"], not results["without"]], dtype=torch.int)
    dist.all_reduce(wrong)
    return {"with": not wrong[0], "without": not wrong[1]}


def main(out: Path) -> None:
    results = {
        layout: {case: run_case(Parallel(**options), *what) for case, what in CASES.items()}
        for layout, options in LAYOUTS[int(os.environ["WORLD_SIZE"])].items()
    }
    if dist.get_world_size() == 2:
        results["scatter"] = scatter_of_views()
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
