"""The whole model in one process: packing, text-only packs, freezing, the KV cache, counts at full size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from megatron.core.inference.contexts import StaticInferenceContext

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.model import VisionLanguageModel, build_model


@pytest.fixture
def model(one_process: BuildContext, tiny_model: Callable[..., ModelConfig]) -> VisionLanguageModel:
    built = build_model(tiny_model(), one_process)
    backend.initialise(built, seed=3)
    with torch.no_grad():  # larger than first weights, so that what should matter is seen to
        for p in built.parameters():
            p.mul_(2)
    return built


def weights(model: VisionLanguageModel, axis: str) -> list[torch.nn.Parameter]:
    return [p for _, p in model.axis(axis)]


def test_packed_samples_never_see_each_other(model: VisionLanguageModel, tiny_pack: Callable[..., PackedBatch]) -> None:
    """Another pixel and another token in the first sample change its own losses, and not one bit of the others'."""
    pack = tiny_pack(lengths=(17, 23, 8), tiles=3)
    tiles, tokens = pack.tiles.clone(), pack.tokens.clone()
    tiles[0] = 255 - tiles[0]
    tokens[0, 0] += 1
    losses, changed = model(pack), model(replace(pack, tiles=tiles, tokens=tokens))
    assert (losses != changed)[0, 2:17].all()
    assert torch.equal(losses[0, 17:], changed[0, 17:])


def test_a_sample_is_the_same_packed_or_alone(
    model: VisionLanguageModel, tiny_pack: Callable[..., PackedBatch]
) -> None:
    pack = tiny_pack(lengths=(17, 23, 8), tiles=3)
    alone = PackedBatch(
        tokens=pack.tokens[:, :17],
        labels=pack.labels[:, :17],
        loss_weights=pack.loss_weights[:, :17],
        position_ids=pack.position_ids[:, :17],
        cu_seqlens=torch.tensor([0, 17], dtype=torch.int32),
        tiles=pack.tiles,
        visual_index=pack.visual_index,
    )
    torch.testing.assert_close(model(alone), model(pack)[:, :17], rtol=1e-5, atol=1e-5)


def test_later_tokens_are_not_seen(model: VisionLanguageModel, tiny_pack: Callable[..., PackedBatch]) -> None:
    pack = tiny_pack(lengths=(20,), tiles=0)
    tokens = pack.tokens.clone()
    tokens[0, 12] += 1
    logits, changed = (model(replace(p, labels=None)) for p in (pack, replace(pack, tokens=tokens)))
    assert torch.equal(logits[0, :12], changed[0, :12]) and not torch.equal(logits[0, 12], changed[0, 12])


def test_losses_are_cross_entropies_of_the_logits(
    model: VisionLanguageModel, tiny_pack: Callable[..., PackedBatch]
) -> None:
    pack = tiny_pack()
    logits = model(pack, gather_logits=True)
    assert logits.shape == (1, 48, 96)
    wanted = torch.nn.functional.cross_entropy(logits[0], pack.labels[0], reduction="none")
    torch.testing.assert_close(model(pack)[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [["encoder"], ["connector"], ["decoder"], ["encoder", "connector", "decoder"]])
def test_only_the_named_axes_learn(
    model: VisionLanguageModel, tiny_pack: Callable[..., PackedBatch], train: list[str]
) -> None:
    model.freeze(train)
    model(tiny_pack()).sum().backward()
    for axis in ("encoder", "connector", "decoder"):
        learns = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in weights(model, axis)]
        assert all(learns) if axis in train else not any(learns)


def test_pixels_have_a_gradient(model: VisionLanguageModel, tiny_pack: Callable[..., PackedBatch]) -> None:
    model.freeze(["decoder"])  # even through a frozen encoder
    pack = tiny_pack()
    pixels = pack.tiles.float().requires_grad_()
    losses = model(replace(pack, tiles=pixels))
    assert torch.equal(losses, model(pack))
    losses.sum().backward()
    assert (pixels.grad.flatten(1).abs().sum(1) > 0).all()


@torch.no_grad()
def test_kv_cache_gives_the_same_logits(model: VisionLanguageModel, tiny_pack: Callable[..., PackedBatch]) -> None:
    """A prompt with images, then a chunk of three tokens, then one by one: as the whole sequence at once."""
    model.eval()
    pack = replace(tiny_pack(lengths=(20,), tiles=2), labels=None)
    whole = model(pack, gather_logits=True)
    cache, parts, nothing = StaticInferenceContext(1, 32), [], pack.tiles[:0]
    cache.materialize_only_last_token_logits = False
    for start, end in [(0, 14), (14, 17), (17, 18), (18, 19), (19, 20)]:
        chunk = replace(
            pack,
            tokens=pack.tokens[:, start:end],
            position_ids=pack.position_ids[:, start:end],
            tiles=nothing if start else pack.tiles,
            visual_index=pack.visual_index[:0] if start else pack.visual_index,
        )
        parts.append(model(chunk, gather_logits=True, inference_context=cache))
        cache.increment_sequence_len_offset(end - start)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_nothing(
    one_process: BuildContext,
    tiny_model: Callable[..., ModelConfig],
    tiny_pack: Callable[..., PackedBatch],
    recompute: str,
) -> None:
    def gradients(how: str) -> dict[str, torch.Tensor]:
        model = build_model(tiny_model(), replace(one_process, recompute=how))
        backend.initialise(model, seed=3)
        model(tiny_pack()).sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    torch.testing.assert_close(gradients(recompute), gradients("none"), rtol=1e-5, atol=1e-5)


NVLM_D_72B = {
    "tiling": {"tile": 448},
    "encoder": {"name": "internvit"},
    "connector": {"name": "pixel_shuffle_mlp", "hidden": 29568},
    "injection": "inline",
    "decoder": {
        "name": "qwen2", "layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8, "ffn": 29568, "vocab": 152064,
    },
}  # fmt: skip


def test_nvlm_d_72b_builds_with_its_counts(one_process: BuildContext) -> None:
    config = ModelConfig.parse(NVLM_D_72B)
    with torch.device("meta"):
        built = build_model(config, one_process)
    counts = config.parameter_counts()
    for axis in ("encoder", "connector", "injection", "decoder"):
        assert counts[axis] == sum(p.numel() for p in weights(built, axis))
    assert counts["total"] == pytest.approx(78.863e9, rel=1e-4)
    assert config.tokens_per_tile == 256
