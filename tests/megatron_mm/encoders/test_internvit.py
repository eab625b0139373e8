"""InternViT on megatron-core against the published layer written out in plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.internvit import InternViT
from megavlm.megatron_mm.encoders.internvit_model import InternViTModel
from megavlm.platform.errors import ConfigError

SPEC = InternViT(image_size=28, patch_size=7, layers=2, hidden=32, heads=4, ffn=64)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + SPEC.norm_eps) * weight


def restated(model: InternViTModel, tiles: Tensor) -> Tensor:
    """The published forward pass on the model's own weights: [n, 3, H, W] in 0..255 -> [n, patches, hidden]."""
    w = dict(model.named_parameters())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = F.conv2d(
        (tiles / 255 - mean) / std, w["embedding.patches.weight"], w["embedding.patches.bias"], stride=SPEC.patch_size
    )
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w["embedding.class_token"].expand(len(x), 1, -1), x], 1) + w["embedding.positions"]
    for layer in range(SPEC.layers):
        p = {name.removeprefix(f"block.layers.{layer}."): t for name, t in w.items()}
        x = x + p["self_attn_bda.scale"] * attention(p, rms(x, p["input_layernorm.weight"]))
        h = F.linear(rms(x, p["pre_mlp_layernorm.weight"]), p["mlp.linear_fc1.weight"], p["mlp.linear_fc1.bias"])
        h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
        x = x + p["mlp_bda.scale"] * F.linear(h, p["mlp.linear_fc2.weight"], p["mlp.linear_fc2.bias"])
    return x[:, 1:]


def attention(p: dict[str, Tensor], x: Tensor) -> Tensor:
    n, tokens, width = x.shape
    qkv = F.linear(x, p["self_attention.linear_qkv.weight"]).view(n, tokens, SPEC.heads, 3, -1)  # megatron-core's rows
    q, k, v = (part.flatten(2) for part in qkv.unbind(3))
    q, k = rms(q, p["self_attention.q_norm.weight"]), rms(k, p["self_attention.k_norm.weight"])
    q, k, v = (t.view(n, tokens, SPEC.heads, -1).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / (width // SPEC.heads) ** 0.5).softmax(-1)
    return F.linear(
        (scores @ v).transpose(1, 2).flatten(2),
        p["self_attention.linear_proj.weight"],
        p["self_attention.linear_proj.bias"],
    )


@pytest.fixture
def model(one_process: BuildContext) -> InternViTModel:
    built = SPEC.build(one_process)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in built.parameters():
            p.normal_(0.0, 0.3, generator=draw)
    return built


def tiles(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(0)) * 255


def test_equals_the_published_layers(model: InternViTModel) -> None:
    (feature,) = model(tiles())
    assert (feature.grid, feature.layer, feature.images.tolist()) == ((4, 4), -1, [0, 1, 2])
    torch.testing.assert_close(feature.values, restated(model, tiles()).flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_sees_in_both_directions_and_only_its_tile(model: InternViTModel) -> None:
    """The last patch reaches the first; another tile reaches nothing."""
    pixels = tiles().requires_grad_()
    (feature,) = model(pixels)
    feature.tiles[1, 0, 0].sum().backward()
    assert pixels.grad[1, :, -7:, -7:].abs().sum() > 0
    assert pixels.grad[0].abs().sum() == 0 and pixels.grad[2].abs().sum() == 0


def test_without_qk_norm_and_with_qkv_bias(one_process: BuildContext) -> None:
    spec = SPEC.model_copy(update={"qk_norm": False, "qkv_bias": True})
    names = dict(spec.build(one_process).named_parameters())
    assert sum(p.numel() for p in names.values()) == spec.parameters()
    assert names["block.layers.0.self_attention.linear_qkv.bias"].shape == (96,)


def test_layer_scale_starts_at_its_key(one_process: BuildContext) -> None:
    spec = SPEC.model_copy(update={"layer_scale": 0.25})

    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = spec.build(one_process)

        def sharded_state_dict(self) -> dict:
            return self.encoder.sharded_state_dict()

    holder = Holder()
    backend.initialise(holder, seed=1)
    assert holder.encoder.block.layers[1].mlp_bda.scale.tolist() == [0.25] * 32


@pytest.mark.parametrize(
    ("spec", "stated"),
    [(SPEC, None), (InternViT(image_size=56, layers=3, hidden=128, heads=4, ffn=256), None), (InternViT(), 5.536e9)],
    ids=["tiny", "mini", "6B"],
)
def test_parameters_are_counted_right(one_process: BuildContext, spec: InternViT, stated: float | None) -> None:
    with torch.device("meta"):
        built = sum(p.numel() for p in spec.build(one_process).parameters())
    assert spec.parameters() == built
    assert stated is None or built == pytest.approx(stated, rel=1e-3)


def test_heads_that_do_not_divide_are_refused_before_building() -> None:
    with pytest.raises(ConfigError, match="encoder.heads 25 .*parallel.tp 8") as error:
        InternViT().check(Parallel(tp=8))
    assert "dummy heads" in str(error.value)


@pytest.mark.parametrize("change", [{"patch_size": 15}, {"heads": 7}])
def test_impossible_shapes(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        InternViT.parse({"name": "internvit", **change})
