"""Weights of each modality's own: against both branches computed for every token, as EVEv2's code does, and blended."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import routed_worker as worker
import torch
import torch.nn.functional as F
from megatron.core import dist_checkpointing
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import COMPLETE
from megavlm.megatron_mm.checkpoints.weights import fill
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.conversion.start import fill_parts
from megavlm.megatron_mm.decoders.qwen2 import Qwen2
from megavlm.megatron_mm.inference.generate import generate
from megavlm.megatron_mm.injection.modality_weights import ModalityWeights
from megavlm.megatron_mm.injection.rows import Rows
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.images import ImageTiles, places

Weights = dict[str, Tensor]
PACKS = {
    "three samples, two of them with an image": worker.pack(0),
    "all text": worker.pack(1, where=()),
    "all visual": worker.pack(2, where=(0, 4, 8), lengths=(4, 8)),
    "text before, between and after": worker.pack(3, where=(1, 5, 13, 28), lengths=(20, 1, 16)),
}


def built(ctx: BuildContext, injection: str = "modality_weights", decoder: str = "qwen2") -> VisionLanguageModel:
    model = build_model(worker.model_config(injection, decoder), ctx)
    backend.initialise(model, seed=3)
    return model


def told_apart(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model with norms and biases that are not all alike, and second weights that are not the first."""
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for _, weight in model.stages.named_parameters():
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.1)
    return model


# --- both branches, as the facts of EVEv2's code have it ------------------------------------------------------------


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotated(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """[s, heads, d]: both halves of d turned by the position times base^(-2i/d)."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * base ** (-torch.arange(half, dtype=x.dtype) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attended(qkv: Tensor, pack: PackedBatch, spec: Any) -> Tensor:
    """Causal attention inside each sample, head by head. A group's part of `qkv` is its queries, key and value."""
    groups, each = spec.kv_heads, spec.heads // spec.kv_heads
    by_group = qkv.view(len(qkv), groups, each + 2, spec.head_dim)
    positions = pack.position_ids[0].double()
    key = rotated(by_group[:, :, each], positions, spec.rope_base)
    samples = torch.bucketize(torch.arange(len(qkv)), pack.cu_seqlens[1:].long(), right=True)
    seen = (samples[:, None] == samples) & torch.ones(len(qkv), len(qkv)).tril().bool()
    out = []
    for head in range(spec.heads):
        group = head // each
        query = rotated(by_group[:, group : group + 1, head % each], positions, spec.rope_base)[:, 0]
        scores = (query @ key[:, group].T / spec.head_dim**0.5).masked_fill(~seen, float("-inf"))
        out.append(scores.softmax(-1) @ by_group[:, group, each + 1])
    return torch.cat(out, -1)


def both_branches(w: Weights, pack: PackedBatch, visual: Tensor, spec: Any) -> Tensor:
    """Logits [s, vocab]. Every branch sees every token; a mask takes one of the two results."""
    is_visual = torch.zeros(pack.length, 1, dtype=torch.bool)
    is_visual[pack.visual_index] = True
    eps = spec.norm_eps

    def blend(branch: Callable[[str], Tensor]) -> Tensor:
        return torch.where(is_visual, branch("visual."), branch(""))

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def mlp(x: Tensor, name: str) -> Tensor:
        gate, up = linear(x, f"{name}linear_fc1").chunk(2, -1)
        return linear(F.silu(gate) * up, f"{name}linear_fc2")

    x = F.embedding(pack.tokens[0], w["embedding.word_embeddings.weight"])
    x = x.index_copy(0, pack.visual_index, visual.double())
    for k in range(spec.layers):
        at = f"decoder.layers.{k}."
        y = blend(lambda b, x=x, at=at: rms(x, w[f"{at}input_layernorm.{b}weight"], eps))
        qkv = blend(lambda b, y=y, at=at: linear(y, f"{at}self_attention.linear_qkv.{b}"[:-1]))
        heads = attended(qkv, pack, spec)
        x = x + blend(lambda b, h=heads, at=at: linear(h, f"{at}self_attention.linear_proj.{b}"[:-1]))
        y = blend(lambda b, x=x, at=at: rms(x, w[f"{at}pre_mlp_layernorm.{b}weight"], eps))
        x = x + blend(lambda b, y=y, at=at: mlp(y, f"{at}mlp.{b}"))
    return rms(x, w["decoder.final_layernorm.weight"], eps) @ w["output_layer.weight"].T


@pytest.mark.parametrize("decoder", ["qwen2", "llama"])
@pytest.mark.parametrize("kind", PACKS)
def test_each_token_in_its_branch_is_both_branches_blended(one_process: BuildContext, kind: str, decoder: str) -> None:
    """Logits to 1e-5, and the gradient of every weight to 1e-5 of the largest, and of the visual tokens."""
    model = told_apart(built(one_process, decoder=decoder))
    pack = replace(model.see(PACKS[kind]), labels=None)
    if len(pack.visual_index):
        pack = replace(pack, visual=pack.visual.detach().requires_grad_())
    pull = torch.randn(pack.length, 96, generator=torch.Generator().manual_seed(2)) / pack.length
    names = dict(model.stages[0].decoder.named_parameters())
    theirs = {name: weight.detach().double().requires_grad_() for name, weight in names.items()}
    seen = torch.zeros(0, 32) if pack.visual is None or not len(pack.visual_index) else pack.visual
    seen = seen.detach().double().requires_grad_()

    ours = model(pack)[0]
    wanted = both_branches(theirs, pack, seen, model.spec.decoder)
    assert (ours.double() - wanted).abs().max() < 1e-5
    (ours * pull).sum().backward()
    (wanted * pull).sum().backward()
    for name, weight in names.items():
        assert weight.grad is not None, name
        off = (weight.grad.double() - theirs[name].grad).abs().max()
        assert off <= 1e-5 * max(1.0, theirs[name].grad.abs().max().item()), name
    moved = {name for name, weight in names.items() if ".visual." in name and weight.grad.abs().max() > 0}
    assert len(moved) == (0 if kind == "all text" else sum(".visual." in name for name in names))
    if len(seen):
        assert torch.allclose(pack.visual.grad.double(), seen.grad, atol=1e-5)


def test_rows_fill_up_for_fp8_and_nobody_sees_it() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(5, 3, generator=draw, requires_grad=True) for _ in range(2)]
    for images in (0, 7, 40):
        x = torch.randn(20, 2, 3, generator=draw, requires_grad=True)
        visual = torch.randperm(40, generator=draw).view(20, 2) < images
        lengths: list[int] = []

        def through(rows: Tensor, weight: Tensor, lengths: list[int] = lengths) -> tuple[Tensor, None]:
            lengths.append(len(rows))
            return rows @ weight.T, None

        out = Rows(visual).through(x, *(lambda r, w=w: through(r, w) for w in weights), multiple=16)
        wanted = torch.where(visual[..., None], x @ weights[1].T, x @ weights[0].T)
        assert lengths == [max(16, -(-n // 16) * 16) for n in (40 - images, images)]
        assert torch.allclose(out, wanted, atol=1e-6)
        pull = torch.randn(out.shape, generator=draw)
        for a, b in zip(*(torch.autograd.grad(y, [x, *weights], pull) for y in (out, wanted)), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


# --- what it costs --------------------------------------------------------------------------------------------------


def test_products_are_the_plain_decoders(one_process: BuildContext) -> None:
    """EVEv2's own way would be twice as many in the layers."""
    found = []
    for injection in ("modality_weights", "inline"):
        model = built(one_process, injection)
        pack = model.see(replace(PACKS["text before, between and after"], labels=None))
        with FlopCounterMode(display=False) as counter:
            model(replace(pack, visual=pack.visual.detach())).sum().backward()
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("decoder", ["qwen2", "llama"])
def test_parameters_are_those_that_are_built(one_process: BuildContext, decoder: str) -> None:
    model = built(one_process, decoder=decoder)
    count = sum(weight.numel() for _, weight in model.axis("injection"))
    assert count == model.spec.injection.parameters(model.spec.decoder) == model.spec.parameter_counts()["injection"]


def test_eve_v2_has_14_billion() -> None:
    """Its published files are 28.33 GB of bfloat16 (BAAI/EVE-7B-HD-v2.0); patch embedding and tokens are 15.5 M."""
    qwen = Qwen2(layers=28, hidden=3584, heads=28, kv_heads=4, ffn=18944, vocab=152064)
    entrance = 3 * 16 * 16 * 1024 + 1024 + 1024 * 4 * 3584 + 3584 + 2 * 3584
    total = qwen.parameters() + ModalityWeights(name="modality_weights").parameters(qwen) + entrance
    assert 2 * total == pytest.approx(28.33e9, rel=1e-3)


def test_visual_tokens_stand_in_the_sequence_without_tags() -> None:
    spec = ModalityWeights(name="modality_weights")
    for place in places(ImageTiles(tiles=2, columns=2, rows=1), thumbnail=True):
        placed = spec.placement(place)
        assert (placed.tag, placed.inline) == ("", True)


# --- copies ---------------------------------------------------------------------------------------------------------


def seconds(model: VisionLanguageModel) -> dict[str, tuple[Tensor, Tensor]]:
    """Each second weight with the first in its place."""
    weights = dict(model.stages.named_parameters())
    return {k: (w, weights[k.replace(".visual.", ".")]) for k, w in weights.items() if ".visual." in k}


def test_with_copies_it_is_the_plain_decoder(one_process: BuildContext) -> None:
    routed, plain = built(one_process), built(one_process, "inline")
    assert len(seconds(routed)) == 7 * 2 and all(torch.equal(*pair) for pair in seconds(routed).values())
    for pack in PACKS.values():
        pack = replace(pack, labels=None)
        assert torch.allclose(routed(pack), plain(pack), atol=1e-6)
    text = replace(PACKS["all text"], labels=None)
    assert torch.equal(routed(text), plain(text))
    told_apart(routed)
    assert not any(torch.equal(*pair) for pair in seconds(routed).values())


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def make(model: VisionLanguageModel, parts: list[str] | None = None) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        kept = model.sharded_state_dict()
        if parts is not None:
            kept = {k: {n: t for n, t in v.items() if n.partition(".")[0] in parts} for k, v in kept.items()}
        dist_checkpointing.save(kept, str(folder))
        (folder / COMPLETE).write_text(json.dumps({} if parts is None else {"parts": parts}))
        return folder

    return make


@pytest.mark.parametrize("read", [fill, fill_parts])
def test_a_plain_decoders_checkpoint_gives_both_weights(one_process: BuildContext, saved: Any, read: Any) -> None:
    """A stage after one without second weights, and one that starts from another run's."""
    plain = told_apart(built(one_process, "inline"))
    routed = told_apart(built(one_process))
    read(routed, saved(plain))
    assert all(torch.equal(*pair) for pair in seconds(routed).values())
    pack = replace(PACKS["three samples, two of them with an image"], labels=None)
    assert torch.allclose(routed(pack), plain(pack), atol=1e-6)


def test_an_imported_decoder_gives_both_weights_and_leaves_the_tower(one_process: BuildContext, saved: Any) -> None:
    plain = told_apart(built(one_process, "inline"))
    routed = told_apart(built(one_process))
    tower = {name: weight.clone() for name, weight in routed.tower.named_parameters()}
    fill_parts(routed, saved(plain, parts=["decoder"]))
    assert all(torch.equal(*pair) for pair in seconds(routed).values())
    assert all(torch.equal(weight, tower[name]) for name, weight in routed.tower.named_parameters())
    found = dict(routed.stages.named_parameters())
    assert all(torch.equal(found[name], weight) for name, weight in plain.stages.named_parameters())


@pytest.mark.parametrize("read", [fill, fill_parts])
def test_second_weights_that_a_checkpoint_holds_are_read(one_process: BuildContext, saved: Any, read: Any) -> None:
    taught, routed = told_apart(built(one_process)), built(one_process)
    read(routed, saved(taught))
    wanted = seconds(taught)
    for name, (second, first) in seconds(routed).items():
        assert torch.equal(second, wanted[name][0]) and torch.equal(first, wanted[name][1])
        assert not torch.equal(second, first)


# --- what is trained, and what is said ------------------------------------------------------------------------------


def test_the_second_weights_are_the_injections(one_process: BuildContext) -> None:
    model = built(one_process)
    model.freeze(["injection"])
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {f"stages.{name}" for name in seconds(model)}
    model.freeze(["decoder"])
    assert not learning & {name for name, p in model.named_parameters() if p.requires_grad}


def after(pack: PackedBatch, said: list[int]) -> PackedBatch:
    """The same sample, and `said` behind it."""
    length = pack.length + len(said)
    return replace(
        pack,
        tokens=torch.cat([pack.tokens, torch.tensor([said], dtype=torch.int64)], 1),
        position_ids=torch.arange(length)[None],
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        loss_weights=torch.zeros(1, length),
    )


def test_token_by_token_is_as_all_at_once(one_process: BuildContext) -> None:
    """What is said goes through the weights of text, behind keys and values of both."""
    model = told_apart(built(one_process)).eval()
    prompt = replace(worker.pack(7, where=(2, 9), lengths=(17,)), labels=None)
    said = list(generate(model, prompt, stop=set(), max_new_tokens=6))
    with torch.no_grad():
        whole = [int(model(after(prompt, said[:k]), gather_logits=True)[0, -1].argmax()) for k in range(6)]
    assert said == whole and len(set(said)) > 1
