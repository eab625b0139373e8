"""What the ranks of test_routed_layouts.py run: training steps of a decoder with weights of each modality's own."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.weights import fill
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
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
        "cp2": {"cp": 2},
        "dp2 overlapped": {"overlap": True},
    },
}
EVERYTHING = ["encoder", "connector", "injection", "decoder"]
CASES: dict[str, tuple[list[str], dict[str, str], str]] = {
    "everything": (EVERYTHING, {}, "images"),
    "recomputed": (EVERYTHING, {"recompute": "full"}, "images"),
    "frozen decoder": (["encoder", "connector", "injection"], {}, "images"),
    "text alone": (["injection"], {}, "text"),
}
INJECTION = "modality_weights"
TEXTS = (17, 23, 8)
EACH = 4  # visual tokens of a tile


def model_config(injection: str = INJECTION, decoder: str = "qwen2") -> ModelConfig:
    """A model of 2 layers."""
    own = {} if decoder == "qwen2" else {"rope_base": 1e4, "norm_eps": 1e-5, "max_positions": 256}
    return ModelConfig.parse(
        {
            "tiling": {"tile": 28},
            "encoder": {
                "name": "internvit", "image_size": 28, "patch_size": 7,
                "layers": 1, "hidden": 32, "heads": 4, "ffn": 64,
            },
            "connector": {"name": "pixel_shuffle_mlp", "hidden": 48},
            "injection": {"name": injection, "tags": "none"},
            "decoder": {
                "name": decoder, "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 96, **own,
            },
        }
    )  # fmt: skip


def pack(seed: int, where: tuple[int, ...] = (2, 19), lengths: tuple[int, ...] = TEXTS) -> PackedBatch:
    """Samples of these lengths, and a tile's tokens from each of these places on.

    As they are by default, all stand in the first half: one of two ranks of a split sequence has none.
    """
    draw = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    tokens = torch.randint(0, 96, (1, total), generator=draw)
    return PackedBatch(
        tokens=tokens,
        labels=tokens.roll(-1, 1),
        loss_weights=torch.rand(1, total, generator=draw),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        tiles=torch.randint(0, 256, (len(where), 3, 28, 28), generator=draw).to(torch.uint8),
        visual_index=torch.tensor([start + k for start in where for k in range(EACH)], dtype=torch.int64),
    )


def run_layout(parallel: Parallel) -> dict[str, Any]:
    """What run_case tells of every case."""
    backend.init_distributed(parallel, seed=1)
    return {case: run_case(parallel, *what) for case, what in CASES.items()}


def run_case(parallel: Parallel, train: list[str], options: dict[str, str], kind: str) -> dict[str, Any]:
    """By step loss, gradient norm, tokens, targets; a number of all logits afterwards, where inference runs."""
    config = model_config()
    model = build_model(config, backend.build_context(parallel, **options))
    backend.initialise(model, seed=5)
    alike = are_alike(model)
    model.freeze(train)
    wrapped = wrapping.wrap(model, overlap=overlaps(parallel), bucket=2000)
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-3, weight_decay=0.0))
    replicas, steps = dist.get_world_size() // parallel.split, []
    for step in range(2):
        packs = [pack(100 * step + i, (2, 19) if kind == "images" and i != 1 else ()) for i in range(4)]
        batch = training.cut([packs[rank::replicas] for rank in range(replicas)], wrapped)
        done = training.train_step(wrapped, optimizer, batch, config.objectives[0].build())
        steps.append([done.loss, done.grad_norm, done.tokens, done.targets])
    told = {"steps": steps, "alike before": alike, "alike after": are_alike(model)}
    if parallel.cp == parallel.vp == 1 and not parallel.sequence_parallel:  # what inference runs on
        told["logits"] = heard(model.eval(), replace(pack(9), labels=None))
    return told


def after_plain(parallel: Parallel, folder: Path) -> bool:
    """Whether a checkpoint of a decoder without second weights, written and read on this layout, gives both."""
    backend.init_distributed(parallel, seed=1)
    plain, model = (build_model(model_config(name), backend.build_context(parallel)) for name in ("inline", INJECTION))
    for seed, each in enumerate((plain, model)):
        backend.initialise(each, seed)
    if dist.get_rank() == 0:
        folder.mkdir()
    dist.barrier()
    dist_checkpointing.save(plain.sharded_state_dict(), str(folder))
    fill(model, folder)
    found = dict(model.stages.named_parameters())
    return are_alike(model) and all(torch.equal(found[name], p) for name, p in plain.stages.named_parameters())


def are_alike(model: VisionLanguageModel) -> bool:
    """Whether every second weight that this rank holds is as the first."""
    weights = dict(model.stages.named_parameters())
    seconds = [name for name in weights if ".visual." in name]
    assert seconds
    return all(torch.equal(weights[name], weights[name.replace(".visual.", ".")]) for name in seconds)


def heard(model: VisionLanguageModel, prompt: PackedBatch) -> float:
    """One number of all logits, the same on every rank."""
    logits = forward(model, prompt, gather_logits=True)
    weights = torch.randn(1, prompt.length, 96, generator=torch.Generator().manual_seed(1))
    return told(None if logits is None else (logits * weights).sum()[None], (1,)).item()


def main(out: Path) -> None:
    results = {
        layout: run_layout(Parallel(**options)) for layout, options in LAYOUTS[int(os.environ["WORLD_SIZE"])].items()
    }
    layouts = {"tp2": Parallel(tp=2), "pp2": Parallel(pp=2)}
    copied = {name: after_plain(each, out.parent / name) for name, each in layouts.items()}
    if dist.get_rank() == 0:
        out.write_text(json.dumps({"layouts": results, "copied": copied}))
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
