"""Sets and recipes of images of every shape, and what the ranks of test_varied_layouts.py train on them."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from PIL import Image

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.loader import open_loader
from megavlm.megatron_mm.data.manifest import Manifest
from megavlm.megatron_mm.data.shares import Shares
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping
from megavlm.megatron_mm.training.loop import agreed
from megavlm.platform.config import load_recipe
from megavlm.platform.shards import ShardWriter

LAYOUTS = {
    4: {
        "dp4": {},
        "dp2 pp2": {"pp": 2},
        "tp2 pp2": {"tp": 2, "pp": 2},
        "pp2 cp2": {"pp": 2, "cp": 2},
    },
}
SHAPES = [(56, 56), (90, 40), (40, 90), (400, 10), (10, 400), (1, 1), (3, 1), (1, 3), (640, 480), (30, 30)]
CUT = 9  # the last of them is cut off behind its header
MODELS: dict[str, dict[str, Any]] = {
    "eve": {
        "tiling": {"name": "longer_side", "tile": 56, "side_step": 14},
        "encoder": {"name": "eve", "image_size": 56, "patch_size": 7, "channels": 16, "heads": 2},
        "connector": {"name": "image_rows", "heads": 2},
    },
    "eve_v2": {
        "tiling": {"name": "fixed_area", "tile": 56, "side_step": 14},
        "encoder": {"name": "eve_v2", "image_size": 56, "patch_size": 7, "hidden": 16, "channels": 32},
        "connector": {"name": "image_rows", "class_attention": False, "layers": 0},
    },
}  # fmt: skip
DECODER = {"name": "qwen2", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 514}
STAGE = {
    "train": ["encoder", "connector", "decoder"], "steps": 3, "precision": "fp32", "optimizer": {"lr": 1e-3},
}  # fmt: skip
SEES = {"weights": {"text": 1, "vqa": 2}, "sequence_length": 160, "packs_per_batch": 5}
STAGES = {
    "packed": STAGE | {"mixture": SEES},
    "apart": STAGE | {"mixture": SEES | {"pack": False}},
    "text": STAGE | {"mixture": {"weights": {"text": 1}, "sequence_length": 96, "packs_per_batch": 4}},
}
CASES = [("eve", "packed"), ("eve", "apart"), ("eve", "text"), ("eve_v2", "packed"), ("eve_v2", "apart")]


def picture(width: int, height: int, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_sets(folder: Path) -> None:
    """`text`, and `vqa`: an image of each shape, one that is cut off, and a sample of two images."""
    with ShardWriter(folder / "text") as writer:
        for k in range(9):
            writer.write(f"t{k}", {"json": talk(f"How many? {k} {k}", str(k))})
    with ShardWriter(folder / "vqa") as writer:
        for k, shape in enumerate(SHAPES):
            data = picture(*shape, seed=k)
            data = data[: len(data) // 2] if k == CUT else data
            writer.write(f"v{k}", {"png": data, "json": talk("<image>What colour?", f"it is {k}")})
        both = {"1.png": picture(80, 20, seed=20), "2.png": picture(20, 60, seed=21)}
        writer.write("both", {**both, "json": talk("<image>or<image>?", "the first")})


def write_recipe(folder: Path, name: str) -> Path:
    """One of MODELS over the sets in a folder."""
    sets = {each: str(folder / each) for each in ("text", "vqa")}
    data = {"tokenizer": "mini", "template": {"name": "chatml", "system": ""}, "sets": sets}
    model = MODELS[name] | {"injection": "inline", "decoder": DECODER}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"seed": 3, "model": model, "data": data, "stages": STAGES}))
    return path


def opened(folder: Path, name: str, stage: str) -> tuple[StageData, Path]:
    """A stage, and where its manifest lies."""
    return StageData.of(load_recipe(str(folder / f"{name}.yaml")), stage), folder / "packs" / f"{name}-{stage}"


def prepare(folder: Path) -> None:
    """Sets, recipes and manifests, for all ranks to read."""
    write_sets(folder)
    for name in MODELS:
        write_recipe(folder, name)
    for name, stage in CASES:
        build_manifest(*opened(folder, name, stage))


def run_case(folder: Path, name: str, stage: str, parallel: Parallel) -> list[dict[str, Any]]:
    """Three steps on the manifest's global batches."""
    spec, packs = opened(folder, name, stage)
    model = build_model(spec.model, backend.build_context(parallel))
    backend.initialise(model, seed=5)
    model.freeze(spec.stage.train)
    looked: list[int] = []
    model.tower.register_forward_hook(lambda tower, given, made: looked.append(len(made.values)))
    wrapped = wrapping.wrap(model)
    optimizer = wrapping.make_optimizer(wrapped, spec.stage.optimizer)
    told: list[str] = []
    loader = open_loader(spec, Manifest(packs), lambda kind, **fields: told.append(f"{kind} {fields['key']}"))
    results = []
    for made in loader.batches(0, spec.stage.steps, wrapped.lookers.seat):
        batch = loader.settled(made, agreed, wrapped.lookers.seat)
        done = training.train_step(wrapped, optimizer, batch, spec.model.objectives[0].build())
        results.append(
            {
                "numbers": [done.loss, done.grad_norm, done.tokens, done.targets],
                "uneven": unevenness(sum(looked), batch.shares),
                "tiles": [tiles for packs in batch.shares.counts for tiles in packs],
                "sizes": sorted(batch.sizes or ()),
                "told": everyones(told),
            }
        )
        looked.clear()
        told.clear()
    return results


def unevenness(mine: int, shares: Shares) -> float:
    """How far any rank's visual tokens were from an equal share, in the largest tile's; and all of them were seen."""
    work, seen = list(shares.work or ()), everyones([mine])
    ranks = dist.get_world_size() // shares.grid.size  # tensor-parallel ranks look at the same
    assert sum(seen) == ranks * sum(work)
    return max(abs(each - sum(work) / shares.grid.size) for each in seen) / max(work, default=1)


def everyones(mine: list[Any]) -> list[Any]:
    found: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, mine)
    return [each for part in found for each in part]


def run_layout(folder: Path, parallel: Parallel) -> dict[str, list[dict[str, Any]]]:
    backend.init_distributed(parallel, seed=1)
    return {f"{name} {stage}": run_case(folder, name, stage, parallel) for name, stage in CASES}


def main(folder: Path) -> None:
    world = int(os.environ["WORLD_SIZE"])
    results = {name: run_layout(folder, Parallel(**options)) for name, options in LAYOUTS[world].items()}
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
