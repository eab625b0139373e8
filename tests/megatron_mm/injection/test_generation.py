"""Generation with a context: keys and values of the tiles are kept, and say what the whole forward pass says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nvlm_worker as worker
import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.inference.generate import generate
from megavlm.megatron_mm.model import build_model


def longer(pack: PackedBatch, tokens: list[int]) -> PackedBatch:
    """The same sample, after which `tokens` were said."""
    context, length = pack.context, pack.length + len(tokens)
    said = torch.tensor([tokens], dtype=torch.int64)
    return replace(
        pack,
        tokens=torch.cat([pack.tokens, said], 1),
        position_ids=torch.arange(length)[None],
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        loss_weights=torch.zeros(1, length),
        context=replace(
            context,
            until=torch.full_like(context.until, length),
            tags=torch.cat([context.tags, torch.full_like(said, -1)], 1),
        ),
    )


@pytest.mark.parametrize(
    "injection", [{"name": "cross_attention", "every": 2}, {"name": "hybrid", "every": 3, "ffn": True}]
)
def test_token_by_token_is_as_all_at_once(one_process: BuildContext, injection: dict[str, Any]) -> None:
    model = build_model(worker.model_config({**injection, "gate_init": 3.0}), one_process)
    backend.initialise(model, seed=4)
    model.eval()
    # of two samples the first, which has the image; the second ends where it begins
    both = worker.pack(7, hybrid=injection["name"] == "hybrid", lengths=(17, 1))
    alone = replace(
        both, tokens=both.tokens[:, :17], labels=None, context=replace(both.context, tags=both.context.tags[:, :17])
    )
    prompt = longer(alone, [])
    said = list(generate(model, prompt, stop=set(), max_new_tokens=6))
    whole, blind = [], []
    for k in range(6):
        with torch.no_grad():
            logits = model(longer(alone, said[:k]), gather_logits=True)[0, -1]
            dark = replace(longer(alone, said[:k]), tiles=255 - alone.tiles)
            blind.append(model(dark, gather_logits=True)[0, -1])
        whole.append(int(logits.argmax()))
        assert not torch.allclose(logits, blind[-1], atol=1e-4)  # the tiles are still looked at
    assert said == whole
