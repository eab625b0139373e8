"""What patch aligning keeps for the backward pass, against keeping all hidden states as the published code does.

Counted are the bytes of storages that autograd holds after a forward pass, beyond those without aligning: the published
way is a stack of all hidden states (eve_llama.py), ours what the taps keep. EVE-7B's proportions: 32 layers, nine taps,
features of a quarter of the decoder's width, an image of 601 tokens and a caption of 250; and, as the worst case, the
image alone. Exits with 3 where ours is more than 10/33 of the published way for an image with its caption.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "megatron_mm"))
from aligning_worker import TEACHER, model_config, pack

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.model import build_model

HIDDEN, LAYERS, TILE = 512, 32, 24 * 8
CAPTIONED, ALONE = 601 + 250, 608
BOUND = 10 / 33


def config(aligned: bool) -> ModelConfig:
    """EVE's shape, an eighth as wide."""
    told = model_config().model_dump(mode="json")
    told["tiling"]["tile"] = told["encoder"]["image_size"] = TILE
    told["decoder"] |= {"layers": LAYERS, "hidden": HIDDEN, "heads": 8, "kv_heads": 8, "ffn": 2 * HIDDEN}
    teacher = TEACHER | {"image_size": 96, "hidden": HIDDEN // 4, "heads": 2}
    aligning = {"every": 4, "width": HIDDEN // 4, "heads": 8, "side": 96, "teacher": teacher}
    told["objectives"] = [told["objectives"][0], *([told["objectives"][1] | aligning] if aligned else [])]
    return ModelConfig.parse(told)


def kept(aligned: bool, stacked: bool, recompute: Literal["none", "full"], length: int) -> int:
    """Bytes that autograd holds once the pack went forward."""
    model = build_model(config(aligned), backend.build_context(Parallel(), recompute=recompute)).train()
    backend.initialise(model, seed=1)
    model.freeze(["encoder", "connector", "decoder", "objectives"])
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    batch = pack(1, ((TILE, TILE),), model.spec, length=length)
    batch = model.see(batch) if not aligned else replace(model.see(batch), taught=model.teacher(batch.tiles).values)  # type: ignore[union-attr, operator]
    held: dict[int, Any] = {}

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    states: list[Tensor] = []
    if stacked:
        _keep_all(model.stages[0].decoder.decoder, states)  # type: ignore[union-attr]
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        output = model.stages[0](batch)
        if stacked:
            hold(torch.stack(states, dim=2))
    assert output is not None
    return sum(tensor.untyped_storage().nbytes() for at, tensor in held.items() if at not in weights)


def _keep_all(block: Any, states: list[Tensor]) -> None:
    """Every hidden state of a forward pass goes into `states`."""

    def keep(layer: Any, args: Any, named: dict[str, Any]) -> None:
        states.append(named["hidden_states"])

    for layer in block.layers:
        layer.register_forward_pre_hook(keep, with_kwargs=True)
    block.final_layernorm.register_forward_hook(lambda norm, args, out: states.append(out))


def main() -> int:
    """Print the table; 3 where the bound does not hold."""
    backend.init_distributed(Parallel(), seed=1)
    torch.set_num_threads(1)
    worst = 0.0
    print("| tokens | recompute | without aligning | all hidden states stacked | taps | taps / stack |")
    print("|---|---|---|---|---|---|")
    for length in (CAPTIONED, ALONE):
        for recompute in ("none", "full"):
            ways = ((False, False), (False, True), (True, False))
            plain, stack, ours = (kept(*way, recompute, length) / 2**20 for way in ways)  # type: ignore[arg-type]
            share = (ours - plain) / (stack - plain)
            worst = max(worst, share) if length == CAPTIONED else worst
            figures = f"{plain:.1f} MiB | + {stack - plain:.1f} | + {ours - plain:.1f} | {share:.3f}"
            print(f"| {length} | {recompute} | {figures} |")
    print(f"\nbound: 10/33 = {BOUND:.3f}")
    backend.shutdown()
    return 0 if worst <= BOUND else 3


if __name__ == "__main__":
    sys.exit(main())
