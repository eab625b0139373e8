"""What the ranks of test_parallel.py run: every case trained on every layout of this world size."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend import cpu
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping
from megavlm.megatron_mm.training.overlap import overlaps

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
    3: {"dp3": {}},  # of four packs one replica has two, the others one
    4: {
        "tp2 pp2": {"tp": 2, "pp": 2},
        "dp2 tp2": {"tp": 2, "overlap": True},
        "dp2 pp2": {"pp": 2, "overlap": True},
        "pp2 cp2": {"pp": 2, "cp": 2},
        "pp4 uneven": {"pp": 4, "first_stage_layers": 1, "last_stage_layers": 1},
        "tp2 pp2 sequence parallel": {"tp": 2, "pp": 2, "sequence_parallel": True},
    },
}
TRAIN = ["encoder", "connector", "decoder"]
CASES = {  # the packs of a global batch, by kind; what differs in the decoder; what is trained; steps
    "images": (["images"] * 4, {}, TRAIN, 3),
    "text": (["text"] * 4, {}, TRAIN, 3),
    "mixed": (["images", "images", "text", "text"], {}, TRAIN, 3),  # two replicas get an image each,
    "all images on one rank": (["images", "text"] * 2, {}, TRAIN, 20),  # and here the first gets both
    "several images": (["several images", "text", "several images", "images"], {}, TRAIN, 3),
    "packed": (["two samples"] * 4, {}, TRAIN, 3),
    "unpacked": (["first sample", "second sample"] * 4, {}, TRAIN, 3),  # eight samples: three replicas have 3, 3 and 2
    "frozen decoder": (["images", "text"] * 2, {}, ["connector"], 3),
    "tied, padded vocabulary": (["images", "text"] * 2, {"tied": True, "vocab": 97}, ["encoder", "decoder"], 3),
}
SEQUENCE = 48


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


class Kind(NamedTuple):
    """How a pack is made: where its samples end, and where each of its tiles begins, 4 tokens wide."""

    ends: tuple[int, ...]
    tiles: tuple[int, ...]


KINDS = {
    "images": Kind((17, 40, SEQUENCE), (2, 6, 20)),
    "text": Kind((17, 40, SEQUENCE), ()),
    "several images": Kind((29, 40, SEQUENCE), (0, 5, 9, 20, 33, 42)),  # four in a sample, words between some of them
    "two samples": Kind((23, 41, SEQUENCE), (3, 12, 25)),
}


def pack(seed: int, with_images: bool) -> PackedBatch:
    """Three samples of unequal length, tiles in the first two, loss weights of several sizes."""
    return pack_of("images" if with_images else "text", seed)


def pack_of(kind: str, seed: int) -> PackedBatch:
    """A pack of random words and tiles. The last segment of "two samples" is padding.

    "first sample" and "second sample" are those of "two samples", each in a pack of its own: number 2k and 2k + 1 of a
    step, whose seeds begin with a multiple of 100, those of number k.
    """
    if kind in ("first sample", "second sample"):
        return alone(pack_of("two samples", seed - seed % 100 + seed % 100 // 2), kind == "second sample")
    draw, made = torch.Generator().manual_seed(seed), KINDS[kind]
    tokens = torch.randint(0, 96, (1, SEQUENCE), generator=draw)
    labels, weights = tokens.roll(-1, 1), torch.rand(1, SEQUENCE, generator=draw)
    labels[0, :5] = -100
    if kind == "two samples":
        labels[0, made.ends[1] :], weights[0, made.ends[1] :] = -100, 0.0
    ends = torch.tensor([0, *made.ends], dtype=torch.int32)
    tiles = torch.randint(0, 256, (len(made.tiles), 3, 28, 28), generator=draw).to(torch.uint8)
    return packed(tokens, labels, weights, ends, tiles, list(made.tiles))


def packed(
    tokens: Tensor, labels: Tensor, weights: Tensor, ends: Tensor, tiles: Tensor, places: list[int]
) -> PackedBatch:
    positions = torch.cat([torch.arange(n) for n in ends.diff().tolist()])[None]
    index = torch.tensor([place + k for place in places for k in range(4)], dtype=torch.int64)
    return PackedBatch(tokens, labels, weights, positions, ends, tiles, index)


def alone(both: PackedBatch, second: bool) -> PackedBatch:
    """One sample of a pack of two, padded to the same length."""
    start, end = both.cu_seqlens[1:3].tolist() if second else both.cu_seqlens[:2].tolist()
    begins = both.visual_index[::4].tolist()
    mine = [k for k, place in enumerate(begins) if start <= place < end]

    def cut(values: Tensor, blank: float) -> Tensor:
        return torch.nn.functional.pad(values[:, start:end], (0, SEQUENCE - (end - start)), value=blank)

    ends = torch.tensor([0, end - start, SEQUENCE], dtype=torch.int32)
    places = [begins[k] - start for k in mine]
    return packed(
        cut(both.tokens, 0), cut(both.labels, -100), cut(both.loss_weights, 0.0), ends, both.tiles[mine], places
    )


def sight(model: VisionLanguageModel) -> float:
    """What became of the tower: where the gradients were wrong on any rank, or its copies differ, it would tell."""
    weights = torch.stack([model.tower.encoder.embedding.class_token.sum(), model.tower.connector.norm.weight.sum()])
    copies = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, weights.detach())
    return weights.double().sum().item() if all(torch.equal(copy, copies[0]) for copy in copies) else float("nan")


def run_layout(parallel: Parallel, steps: int | None = None) -> dict[str, list[list[float]]]:
    """Every case, by step: loss, gradient norm, what became of the tower, tokens, targets, unevenness of the tiles."""
    backend.init_distributed(parallel, seed=1)
    return {case: run_case(parallel, *what[:-1], steps or what[-1]) for case, what in CASES.items()}


def run_case(parallel: Parallel, kinds: list[str], decoder: dict, train: list[str], steps: int) -> list[list[float]]:
    config = model_config(**decoder)
    model = build_model(config, backend.build_context(parallel))
    backend.initialise(model, seed=5)
    model.freeze(train)
    looked = count_tiles(model)
    wrapped = wrapping.wrap(model, overlap=overlaps(parallel))
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-3, weight_decay=0.01))
    replicas = dist.get_world_size() // parallel.split
    results = []
    for step in range(steps):
        packs = [pack_of(kind, 100 * step + i) for i, kind in enumerate(kinds)]
        batch = training.cut([packs[rank::replicas] for rank in range(replicas)], wrapped)
        done = training.train_step(wrapped, optimizer, batch, config.objectives[0].build())
        seen = sight(wrapped.settled())
        results.append([done.loss, done.grad_norm, seen, done.tokens, done.targets, spread(looked)])
    return results


def count_tiles(model: VisionLanguageModel) -> list[int]:
    """Grows by the tiles that go through this rank's tower."""
    looked: list[int] = []
    model.tower.register_forward_pre_hook(lambda tower, inputs: looked.append(len(inputs[0])))
    return looked


def spread(looked: list[int]) -> int:
    """By how many tiles the ranks' encoders differ since the last call."""
    most = torch.tensor([sum(looked), -sum(looked)])
    looked.clear()
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most.sum())


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


def main(out: Path, steps: int | None = None) -> None:
    results = {
        layout: run_layout(Parallel(**options), steps)
        for layout, options in LAYOUTS[int(os.environ["WORLD_SIZE"])].items()
    }
    if dist.get_world_size() == 2:
        results["scatter"] = scatter_of_views()
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(steps) for steps in sys.argv[2:]))
