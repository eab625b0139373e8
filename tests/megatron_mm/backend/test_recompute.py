"""What a recomputed model keeps for its backward pass, counted. That its gradients are the same: test_model.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.model import VisionLanguageModel, build_model

DEEP = {"encoder": {"layers": 4}, "decoder": {"layers": 4}}


def kept(model: VisionLanguageModel, forward: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that a forward pass keeps, weights left out and each storage once; and what comes out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: list[torch.Tensor] = []  # alive: or an address could be another's next
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):  # no backward pass follows
        out = forward()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    saved.clear()  # autograd holds the list, and what is in it holds the graph
    return sum(size for place, size in storages.items() if place not in weights), out


@pytest.mark.parametrize("trained", [True, False])
def test_recomputation_reaches_tower_and_decoder(
    one_process: BuildContext,
    tiny_model: Callable[..., ModelConfig],
    tiny_pack: Callable[..., PackedBatch],
    trained: bool,
) -> None:
    towers, decoders, pack = [], [], tiny_pack(1)
    for recompute in ("none", "selective", "full"):
        model = build_model(tiny_model(**DEEP), replace(one_process, recompute=recompute))
        backend.initialise(model, seed=3)
        if not trained:
            model.freeze(["connector", "decoder"])
        tower, visual = kept(model, partial(model.tower, pack.tiles))
        seen = replace(pack, visual=visual.values.detach().requires_grad_(), tiles=pack.tiles[:0])
        decoder, _ = kept(model, partial(model.stages[0], seen))
        towers.append(tower)
        decoders.append(decoder)
    assert decoders[0] > decoders[1] > 4 * decoders[2]
    if trained:
        assert towers[0] > towers[1] > 4 * towers[2]
    else:  # nothing of the encoder is kept, whatever the recomputation
        assert towers[0] == towers[1] == towers[2] and 20 * towers[0] < decoders[0]
