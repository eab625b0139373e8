"""`python benchmarks/modality_weights.py`: a token in its own branch against both branches, and against none.

EVEv2's published code computes both branches of every layer for every token, and takes one of the two results by the
mask of visual tokens; here that is the same decoder with another way through its branches. Forward and backward of the
decoder alone, in float32. The contestants take turns, so that other work on the machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.decoders.base import Decoder
from megavlm.megatron_mm.injection.inline import Inline
from megavlm.megatron_mm.injection.modality_weights import ModalityWeights
from megavlm.megatron_mm.injection.routed import RoutedLayer
from megavlm.megatron_mm.injection.rows import Branch, Route, Rows
from megavlm.megatron_mm.model import VisionLanguageModel, build_model

WIDTHS: dict[str, dict[str, int]] = {
    "mini": {"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 2, "ffn": 352, "vocab": 512},
    "wider": {"layers": 2, "hidden": 1024, "heads": 16, "kv_heads": 4, "ffn": 2816, "vocab": 512},
}
SAMPLES, EACH = 4, 128  # of the pack: samples of so many tokens
VISUAL = 80  # of each sample's tokens


class BothRows(Rows):
    """Every row through both branches."""

    def __init__(self, visual: Tensor) -> None:
        super().__init__(visual)
        self.mask = visual[..., None]

    def through(self, x: Tensor, text: Branch, visual: Branch, multiple: int = 1) -> Tensor:
        first, second = (out[0] if isinstance(out, tuple) else out for out in (text(x), visual(x)))
        return torch.where(self.mask, second, first)


class BothLayer(RoutedLayer):
    """A layer as EVEv2's published code computes it."""

    def _route(self, hidden: Tensor, teller: Any) -> Route:
        rows = BothRows(teller.visual[:, None])
        return Route(rows, rows)


class BothBranches(ModalityWeights):
    def layer_specs(self, specs: Mapping[int, ModuleSpec], decoder: Decoder) -> list[ModuleSpec]:
        return [replace(spec, module=BothLayer) for spec in super().layer_specs(specs, decoder)]


CONTESTANTS = {"plain decoder": Inline(tags="none"), "own branch": ModalityWeights(), "both branches": BothBranches()}


def model_of(width: Mapping[str, int], injection: Any) -> VisionLanguageModel:
    """A model of this decoder and hardly any encoder; weights of seed 1."""
    sight = {"image_size": 28, "patch_size": 14, "layers": 1, "hidden": 32, "heads": 4, "ffn": 64}
    config = ModelConfig.parse(
        {
            "tiling": {"tile": 28},
            "encoder": {"name": "internvit", **sight},
            "connector": {"name": "pixel_shuffle_mlp", "hidden": 32},
            "injection": {"name": "inline"},
            "decoder": {"name": "qwen2", **width},
        }
    ).model_copy(update={"injection": injection})
    model = build_model(config, backend.build_context(Parallel()))
    backend.initialise(model, seed=1)
    return model


def pack_of(width: Mapping[str, int]) -> PackedBatch:
    """Samples that begin with an image, whose visual tokens are drawn, with seed 2."""
    draw, length = torch.Generator().manual_seed(2), SAMPLES * EACH
    tokens = torch.randint(0, width["vocab"], (1, length), generator=draw)
    places = torch.arange(length).view(SAMPLES, EACH)[:, :VISUAL].flatten()
    return PackedBatch(
        tokens=tokens,
        labels=tokens.roll(-1, 1),
        loss_weights=torch.ones(1, length),
        position_ids=torch.arange(EACH).repeat(SAMPLES)[None],
        cu_seqlens=torch.arange(0, length + 1, EACH, dtype=torch.int32),
        tiles=torch.zeros(0, 3, 28, 28, dtype=torch.uint8),
        visual_index=places,
        visual=torch.randn(len(places), width["hidden"], generator=draw, requires_grad=True),
    )


def step(model: VisionLanguageModel, pack: PackedBatch) -> float:
    """Loss of one forward and backward pass."""
    model.zero_grad()
    loss = model.stages[0](pack).mean()
    loss.backward()
    return float(loss)


def flops(what: Callable[[], Any]) -> int:
    """What torch counts."""
    with FlopCounterMode(display=False) as counter:
        what()
    return counter.get_total_flops()


def measured(width: Mapping[str, int], rounds: int) -> None:
    """Print a table's rows."""
    models, pack = {name: model_of(width, each) for name, each in CONTESTANTS.items()}, pack_of(width)
    counts = {name: flops(partial(step, model, pack)) for name, model in models.items()}
    losses = {name: step(model, pack) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            begin = time.process_time()
            step(model, pack)
            seconds[name].append(time.process_time() - begin)
    for name, times in seconds.items():
        against = [mine / other for mine, other in zip(times, seconds["plain decoder"], strict=True)]
        print(
            f"| {name} | {counts[name] / 1e9:.2f} | {counts[name] / counts['plain decoder']:.2f} "
            f"| {1e3 * statistics.median(times):.1f} | {1e3 * max(times):.1f} "
            f"| {statistics.median(against):.2f} ({min(against):.2f} to {max(against):.2f}) | {losses[name]:.6f} |"
        )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=7)
    rounds = options.parse_args().rounds
    torch.set_num_threads(1)
    backend.init_distributed(Parallel(), seed=1)
    for name, width in WIDTHS.items():
        print(f"\n{name}: {width}")
        print("| way | GFLOP a step | of plain | ms of CPU, median | worst | of plain | loss |")
        print("|---|---|---|---|---|---|---|")
        measured(width, rounds)
    backend.shutdown()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
