"""Training steps: speed, MFU and memory at several widths, and losses by precision and device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from timing import CUDA, DEVICE, engine_version

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend.fp8 import RECIPES
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.data.amounts import Amounts
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping
from megavlm.megatron_mm.training.flops import peak_tflops, step_flops

AXES = ["encoder", "connector", "decoder"]
# Width, layers, heads, groups and ffn of the decoder; tiles per pack; length; packs per step. 128 tiles in a step:
# FP8 by blocks would fill up fewer.
FULL = ((2048, 8, 16, 4, 5632, 8, 4096, 16), (4096, 4, 32, 8, 14336, 8, 4096, 16), (8192, 2, 64, 8, 29568, 8, 4096, 16))
TINY = ((128, 2, 4, 2, 256, 1, 128, 2),)


def precisions() -> list[str]:
    """Those that this machine can train in; float32 is left to `losses`."""
    return ["bf16", *(RECIPES if engine_version() else ())]


def model(shape: tuple[int, ...], dry: bool) -> ModelConfig:
    width, layers, heads, groups, ffn, *_ = shape
    side, encoder = (28, {"patch_size": 7, "layers": 2, "hidden": 128, "heads": 4, "ffn": 256})
    if not dry:
        side, encoder = (448, {"patch_size": 14, "layers": 3, "hidden": 3200, "heads": 25, "ffn": 12800})
    decoder = {"layers": layers, "hidden": width, "heads": heads, "kv_heads": groups, "ffn": ffn}
    return ModelConfig.parse(
        {
            "tiling": {"tile": side},
            "encoder": {"name": "internvit", "image_size": side, **encoder},
            "connector": {"name": "pixel_shuffle_mlp", "hidden": width},
            "injection": {"name": "inline"},
            "decoder": {"name": "qwen2", **decoder, "vocab": 256 if dry else 32768},
        }
    )


def pack(config: ModelConfig, tiles: int, length: int, seed: int) -> PackedBatch:
    """Two samples: one that holds all the images, and a short one of text."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, config.decoder.vocab, (1, length), generator=draw)
    ends, side = (0, length - length // 8, length), config.tiling.tile
    return PackedBatch(
        tokens=tokens,
        labels=tokens.roll(-1, 1),
        loss_weights=torch.ones(1, length),
        position_ids=torch.cat([torch.arange(b - a) for a, b in zip(ends, ends[1:], strict=False)])[None],
        cu_seqlens=torch.tensor(ends, dtype=torch.int32),
        tiles=torch.randint(0, 256, (tiles, 3, side, side), generator=draw).to(torch.uint8),
        visual_index=torch.arange(2, 2 + tiles * config.tokens_per_tile),
    )


def steps(
    config: ModelConfig, packs: list[PackedBatch], precision: str, count: int, fill: Callable[[Any], None]
) -> list[tuple[float, float]]:
    """(seconds, loss) of `count` training steps on the same packs; `fill` gives the model its first weights."""
    backend.init_distributed(Parallel(), seed=1)
    built = build_model(config, backend.build_context(Parallel(), precision)).to(DEVICE)
    fill(built)
    wrapped = wrapping.wrap(built, precision)
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-4), precision)
    objective, batch, found = config.objectives[0].build(), training.cut([packs], wrapped), []
    for _ in range(count):
        start = time.perf_counter()
        loss = training.train_step(wrapped, optimizer, batch, objective).loss  # a number: the device has finished
        found.append((time.perf_counter() - start, loss))
    backend.shutdown()
    return found


@torch.no_grad()
def quickly(model: torch.nn.Module) -> None:
    """Weights drawn on the device: billions of them, of which only the speed counts."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0, 0.02)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)


def always_alike(model: Any) -> None:
    """The same weights on every device, by the seed."""
    backend.initialise(model, seed=1)


def speed(dry: bool, ceilings: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per width and precision."""
    rows = []
    for shape in TINY if dry else FULL:
        config, (tiles, length, packs) = model(shape, dry), shape[5:]
        batch = [pack(config, tiles, length, seed) for seed in range(packs)]
        flops = step_flops(config, AXES, _amounts(tiles, length, packs))
        for precision in precisions():
            rows.append({"width": shape[0], "layers": shape[1], "precision": precision, "length": length})
            rows[-1] |= _measured(config, batch, precision, flops, packs * length, 3 if dry else 8)
    return rows


def _measured(
    config: ModelConfig, batch: list[PackedBatch], precision: str, flops: float, tokens: int, count: int
) -> dict[str, Any]:
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found = steps(config, batch, precision, count, quickly)
    except (torch.OutOfMemoryError, RuntimeError, AssertionError) as error:  # one figure less, and why
        backend.shutdown()
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    took = sorted(seconds for seconds, _ in found[count // 3 :])[count // 3]
    peak = peak_tflops(torch.cuda.get_device_name()) if CUDA else None
    return {
        "seconds": took,
        "tokens_per_second": tokens / took,
        "flops_per_second": flops / took,
        "mfu_bf16": flops / took / (peak * 1e12) if peak else None,
        "peak_memory": torch.cuda.max_memory_allocated() if CUDA else None,
        "last_loss": found[-1][1],
    }


def _amounts(tiles: int, length: int, packs: int) -> Amounts:
    short = length // 8
    seeing, squares = packs * (length - short), packs * (length - short) ** 2
    counted = {"batch": 0, "first_row": 0, "packs": packs, "samples": 2 * packs, "positions": packs * length}
    both = {"tokens": packs * length, "squares": squares + packs * short**2, "tiles": packs * tiles}
    return Amounts(**counted, **both, seeing_tokens=seeing, seeing_squares=squares)


def losses(dry: bool, ceilings: dict[str, Any]) -> list[dict[str, Any]]:
    """The loss of every step by precision, a small model from the same weights: how far apart the curves are."""
    config = model(TINY[0], dry=True)
    packs = [pack(config, 1, 128, seed) for seed in range(4)]
    count = 3 if dry else 40
    rows = []
    for name in ("fp32", *precisions()):
        found = steps(config, packs, name, count, always_alike)
        rows.append({"device": DEVICE.type, "precision": name, "losses": [loss for _, loss in found]})
    return rows
