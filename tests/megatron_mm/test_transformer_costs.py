"""Costs of a decoder's parts, against what autograd keeps of the real modules and what torch counts.

The modules are megatron-core's, walked through on fake tensors; what is kept is what is still alive after the forward
pass and was not before, so it is measured without the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.costs import MicroBatch, Setting
from megavlm.megatron_mm.decoders.costs import shape_of
from megavlm.megatron_mm.decoders.qwen2 import Qwen2
from megavlm.megatron_mm.injection.inline import Inline
from megavlm.megatron_mm.tracing.follower import Follower
from megavlm.megatron_mm.tracing.walk import Walk, walkable
from megavlm.megatron_mm.tracing.world import one_rank
from megavlm.megatron_mm.transformer_costs import core_kept

ROWS, SAMPLES = 4096, 4
DECODER = Qwen2(layers=2, hidden=512, heads=8, kv_heads=2, ffn=1408, vocab=5008)
MICRO = MicroBatch(positions=ROWS, samples=SAMPLES, squares=ROWS**2 // SAMPLES)
PLAIN, SPLIT = Parallel(tp=2), Parallel(tp=2, sequence_parallel=True)
HOW = [
    (Parallel(), "bf16", "none"),
    (PLAIN, "bf16", "none"),
    (SPLIT, "bf16", "none"),
    (SPLIT, "bf16", "selective"),
    (PLAIN, "fp32", "none"),
]


def setting(parallel: Parallel, precision: str) -> Setting:
    size = 4 if precision == "fp32" else 2
    return Setting(parallel.tp, parallel.cp, parallel.sequence_parallel, size, composed_norms=True)


def packed() -> Any:
    from megatron.core.packed_seq_params import PackedSeqParams

    ends = torch.arange(0, ROWS + 1, ROWS // SAMPLES, dtype=torch.int32)
    whole = torch.tensor([0, ROWS], dtype=torch.int32)
    names = ["cu_seqlens_q", "cu_seqlens_kv", "cu_seqlens_q_padded", "cu_seqlens_kv_padded"]
    return PackedSeqParams(qkv_format="thd", **dict(zip(names, [ends, ends, whole, whole], strict=True)))


def walked(parallel: Parallel, precision: str, recompute: str, work: Callable[[Any, Follower], Any]) -> Any:
    """What `work(decoder, follower)` gives, on fake tensors."""
    with one_rank(0, parallel.tp, parallel, 1), walkable():
        follower = Follower()
        with Walk(follower.see):
            model = DECODER.build(backend.build_context(parallel, precision, recompute), Inline())
            return work(model.train(), follower)


def through(model: Any, states: Tensor) -> Tensor:
    """Hidden states [s, 1, h] through the layers, without the last norm."""
    model.decoder.final_layernorm = None
    angles = torch.zeros(ROWS, 1, 1, DECODER.head_dim)
    return model.decoder(states, attention_mask=None, rotary_pos_emb=angles, packed_seq_params=packed())


def entered(parallel: Parallel, precision: str) -> Tensor:
    rows = ROWS // parallel.tp if parallel.sequence_parallel else ROWS
    return torch.zeros(rows, 1, DECODER.hidden, dtype=backend.PRECISIONS[precision], requires_grad=True)


def kept_by(parallel: Parallel, precision: str, recompute: str, frozen: bool = False) -> tuple[int, int]:
    """Bytes alive after both layers' forward pass that were not before, and of them those of what came out."""

    def kept(model: Any, follower: Follower) -> tuple[int, int]:
        model.requires_grad_(not frozen)
        states = entered(parallel, precision)
        before = follower.total
        out = through(model, states)
        return follower.total - before, out.untyped_storage().nbytes()

    return walked(parallel, precision, recompute, kept)


@pytest.mark.parametrize(("parallel", "precision", "recompute"), HOW)
def test_layers_keep_what_is_alive_after_their_forward_pass(parallel, precision, recompute):
    """Of two layers, so that each one's input counts once: in float32 the first's stands outside."""
    found, out = kept_by(parallel, precision, recompute)
    _, layer, _ = DECODER.costs(MICRO, setting(parallel, precision))
    less = core_kept(shape_of(DECODER), ROWS, setting(parallel, precision)) if recompute == "selective" else 0.0
    told = 2 * (layer.kept - less) + (out if precision == "bf16" else 0)
    told += ROWS * DECODER.hidden * 2 if parallel.sequence_parallel else 0  # megatron-core's place for a whole sequence
    assert found == pytest.approx(told, rel=0.001)


def test_layers_that_are_computed_again_keep_their_inputs_alone():
    """And the angles, which all of them share."""
    found, out = kept_by(PLAIN, "bf16", "full")
    _, layer, _ = DECODER.costs(MICRO, setting(PLAIN, "bf16"))
    assert found == pytest.approx(layer.entrance + out + ROWS * DECODER.head_dim * 4, rel=0.001)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_frozen_layers_keep_what_gradients_need_to_pass(precision):
    found, out = kept_by(PLAIN, precision, "none", frozen=True)
    _, layer, _ = DECODER.costs(MICRO, setting(PLAIN, precision))
    assert found == pytest.approx(2 * layer.passing + (out if precision == "bf16" else 0), rel=0.001)


@pytest.mark.parametrize("parallel", [Parallel(), PLAIN])
def test_the_head_keeps_a_softmax_and_needs_the_logits_beside_it(parallel):
    """Of the last norm, the output layer and the cross entropy. The vocabulary does not divide by 3 and needs no
    padding by 2, so the logits are there once."""

    def passed(model: Any, follower: Follower) -> tuple[int, int, int]:
        before = follower.total
        follower.begin("schedule")
        normed = model.decoder.final_layernorm(entered(parallel, "bf16"))
        logits, _ = model.output_layer(normed)
        loss = model.compute_language_model_loss(torch.zeros(1, ROWS, dtype=torch.int64), logits)
        del logits, normed
        follower.close()
        kept = follower.total - before - loss.untyped_storage().nbytes()
        return kept, follower.peaks[-1].total - before, model.output_layer.weight.numel() + DECODER.hidden

    kept, most, weights = walked(parallel, "bf16", "none", passed)
    _, _, head = DECODER.costs(MICRO, setting(parallel, "bf16"))
    states = ROWS * DECODER.hidden * 2  # what was entered, which is another's
    assert weights == head.weights
    assert kept - states == pytest.approx(head.kept, rel=0.01)
    logits = ROWS * DECODER.vocab / parallel.tp * 2
    assert most - states == pytest.approx(head.kept + logits, rel=0.02) and head.spare >= logits


@pytest.mark.parametrize("parallel", [Parallel(), PLAIN])
def test_weights_and_products_are_what_torch_counts(parallel):
    def counted(model: Any, follower: Follower) -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter:
            through(model, entered(parallel, "bf16"))
        return sum(p.numel() for p in model.parameters()), counter.get_flop_counts()["Global"][torch.ops.aten.mm]

    weights, products = walked(parallel, "bf16", "none", counted)
    embedding, layer, head = DECODER.costs(MICRO, setting(parallel, "bf16"))
    assert weights + DECODER.hidden == embedding.weights + 2 * layer.weights + head.weights  # without the last norm
    assert products == 2 * layer.products


def test_attention_is_half_of_each_samples_square():
    """4 FLOPs to a pair of positions and channel, in both of its products together: by hand."""
    _, layer, head = DECODER.costs(MICRO, setting(Parallel(), "bf16"))
    assert layer.mixing == SAMPLES * 4 * (ROWS // SAMPLES) ** 2 * DECODER.hidden / 2
    assert layer.products == 2 * ROWS * (2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 1408)
    assert head.products == 2 * ROWS * 512 * 5008


def test_one_kernel_of_a_norm_keeps_its_input_and_its_output():
    """On a GPU: 4 bytes of a hidden value and norm in place of 10."""
    alone = Setting()
    _, one, _ = DECODER.costs(MICRO, alone)
    _, many, _ = DECODER.costs(MICRO, setting(Parallel(), "bf16"))
    assert many.kept - one.kept == 2 * ROWS * DECODER.hidden * (10 - 4)
