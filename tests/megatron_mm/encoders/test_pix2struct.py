"""Pix2Struct's encoder against its layers in plain torch, and against transformers' processor and padded, masked model.

The released Eagle hands the processor a normalised tile whose normalisation it has undone: our tile of bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from expert_checks import (
    HERE,
    Shapes,
    Weights,
    check_counts,
    check_recomputing,
    drawn,
    gradient_of_first_cell,
    inside,
    random_tiles,
)
from torch import Tensor

from megavlm.kernels.torchvision import load
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.pix2struct import Pix2Struct
from megavlm.megatron_mm.encoders.pix2struct_patches import flattened_patches
from megavlm.platform.errors import ConfigError

# 52 px become 4 x 4 patches of 8 px, for which 19 allow.
SHAPE: dict[str, Any] = {
    "image_size": 52, "patch_size": 8, "max_patches": 19, "positions": 10,
    "layers": 3, "hidden": 32, "heads": 4, "ffn": 24,
}  # fmt: skip


def shapes(layers: int, h: int, ffn: int, patch: int, positions: int) -> Shapes:
    """The published checkpoint's encoder."""
    one: Shapes = {}
    one |= {f"attention.{name}.weight": (h, h) for name in ("query", "key", "value", "output")}
    one |= {"mlp.wi_0.weight": (ffn, h), "mlp.wi_1.weight": (ffn, h), "mlp.wo.weight": (h, ffn)}
    one |= {"pre_mlp_layer_norm.weight": (h,), "pre_attention_layer_norm.weight": (h,)}
    return {
        "embeddings.patch_projection.weight": (h, 3 * patch**2),
        "embeddings.patch_projection.bias": (h,),
        "embeddings.row_embedder.weight": (positions, h),
        "embeddings.column_embedder.weight": (positions, h),
        "layernorm.weight": (h,),
        **{f"encoder.layer.{i}.{name}": shape for i in range(layers) for name, shape in one.items()},
    }


def published() -> Weights:
    return drawn(shapes(3, 32, 24, 8, 10), 0.2)


def tiles(side: int = 52) -> Tensor:
    return random_tiles(2, side)


def scaling(old: int, new: int) -> Tensor:
    """float64 [new, old]: a triangle as wide as a new pixel around its centre, weights that sum to one."""
    ratio = old / new
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * ratio
    away = (torch.arange(old, dtype=torch.float64) + 0.5)[None] - centres[:, None]
    weights = (1 - away.abs() / max(ratio, 1.0)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def preprocessed(tile: Tensor, side: int, patch: int) -> Tensor:
    """Bytes [3, S, S] -> float64 [patches, patch**2 * 3]: normalised by itself, scaled, cut, channels last."""
    pixels = tile.double()
    deviation = max((pixels - pixels.mean()).pow(2).mean().sqrt().item(), pixels.numel() ** -0.5)
    across = scaling(tile.shape[-1], side * patch)
    scaled = torch.einsum("yh,xw,chw->yxc", across, across, (pixels - pixels.mean()) / deviation)
    cut = [scaled[y : y + patch, x : x + patch].flatten() for y in starts(side, patch) for x in starts(side, patch)]
    return torch.stack(cut)


def starts(side: int, patch: int) -> range:
    return range(0, side * patch, patch)


def norm(weight: Tensor, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def statement(weights: Weights, tile: Tensor) -> Tensor:
    """One tile -> [16, 32]; T5's layers: no bias, and scores are not divided by the root of the head's width."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    patches = preprocessed(tile, 4, 8)
    x = patches @ w["embeddings.patch_projection.weight"].T + w["embeddings.patch_projection.bias"]
    where = torch.arange(16)
    x = x + w["embeddings.row_embedder.weight"][1 + where // 4] + w["embeddings.column_embedder.weight"][1 + where % 4]
    for i in range(3):
        p = inside(w, f"encoder.layer.{i}.")
        y = norm(p["pre_attention_layer_norm.weight"], x)
        q, k, v = ((y @ p[f"attention.{name}.weight"].T).view(16, 4, 8) for name in ("query", "key", "value"))
        seen = torch.einsum("hqk,khd->qhd", torch.einsum("qhd,khd->hqk", q, k).softmax(-1), v)
        x = x + seen.flatten(1) @ p["attention.output.weight"].T
        y = norm(p["pre_mlp_layer_norm.weight"], x)
        x = x + (gelu(y @ p["mlp.wi_0.weight"].T) * (y @ p["mlp.wi_1.weight"].T)) @ p["mlp.wo.weight"].T
    return norm(w["layernorm.weight"], x).float()


def built(ctx: BuildContext = HERE, **change: Any) -> Any:
    model = Pix2Struct(**{**SHAPE, **change}).build(ctx)
    model.load_state_dict(published())  # strictly: exactly the published names
    return model


def test_equals_the_published_encoder() -> None:
    (feature,) = built()(tiles())
    assert (feature.grid, feature.layer, feature.expert) == ((4, 4), -1, "pix2struct")
    assert feature.images.tolist() == [0, 1]
    wanted = torch.cat([statement(published(), tile) for tile in tiles()])
    torch.testing.assert_close(feature.values, wanted, rtol=1e-5, atol=1e-5)


def processed(images: Tensor, spec: Pix2Struct) -> Weights:
    """What transformers' NumPy processor makes of them, the one of Eagle's time: padded patches and their mask."""
    load()
    from transformers.models.pix2struct.image_processing_pil_pix2struct import Pix2StructImageProcessorPil

    sides = {"height": spec.patch_size, "width": spec.patch_size}
    processor = Pix2StructImageProcessorPil(patch_size=sides, max_patches=spec.max_patches)
    many = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]
    return processor(many, return_tensors="pt")


def test_no_padding_is_the_same_as_padding_and_mask() -> None:
    """transformers' processor and whole model, 3 padded patches of 19 masked out."""
    spec = Pix2Struct(**SHAPE)
    inputs = processed(tiles(), spec)
    assert inputs["attention_mask"].sum(1).tolist() == [16, 16] and inputs["flattened_patches"].shape == (2, 19, 194)
    from transformers import Pix2StructVisionConfig, Pix2StructVisionModel

    config = Pix2StructVisionConfig(
        hidden_size=32, patch_embed_hidden_size=192, d_ff=24, d_kv=8, num_hidden_layers=3, num_attention_heads=4,
        seq_len=10, attn_implementation="eager",
    )  # fmt: skip
    whole = Pix2StructVisionModel(config).eval()
    whole.load_state_dict(published())
    wanted = whole(**inputs).last_hidden_state[:, :16].flatten(0, 1)
    torch.testing.assert_close(built()(tiles())[0].values, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "patch", "budget"), [(1024, 16, 2048), (448, 16, 2048), (300, 14, 100), (7, 8, 3)])
def test_patches_are_the_processors(side: int, patch: int, budget: int) -> None:
    """Eagle's 1024 px become 720; smaller tiles are enlarged."""
    spec = Pix2Struct(image_size=side, patch_size=patch, max_patches=budget)
    wanted = processed(tiles(side), spec)["flattened_patches"]
    rows, columns = spec.grid
    ours = flattened_patches(tiles(side), patch, spec.grid, torch.float32)
    assert wanted[:, : rows * columns, :2].amax((0, 1)).tolist() == [rows, columns]
    assert not wanted[:, rows * columns :].any()
    torch.testing.assert_close(ours, wanted[:, : rows * columns, 2:], rtol=1e-5, atol=1e-5)


def test_the_deviation_of_many_values_is_right() -> None:
    """To 1e-6: a sum of three million squares in float32 is not."""
    ours = flattened_patches(tiles(1024), 16, (64, 64), torch.float32)  # where nothing is scaled
    wanted = tiles(1024).double()
    wanted = (wanted - wanted.mean((1, 2, 3), keepdim=True)) / wanted.std((1, 2, 3), correction=0, keepdim=True)
    patches = wanted.view(2, 3, 64, 16, 64, 16).permute(0, 2, 4, 3, 5, 1).reshape(ours.shape).float()
    torch.testing.assert_close(ours, patches, rtol=1e-6, atol=1e-6)


def test_a_tile_of_one_colour_stays_finite() -> None:
    """The floor under the deviation: nothing is divided by zero."""
    one = torch.full((1, 3, 52, 52), 200, dtype=torch.uint8)
    assert flattened_patches(one, 8, (4, 4), torch.float32).abs().max() < 1e-3 * (3 * 52 * 52) ** 0.5


def test_each_tile_is_normalised_by_itself() -> None:
    """Another contrast and brightness of the same picture change nothing, and neither do the recipe's mean and std."""
    picture = tiles().float()
    (plain,), (dull,) = built()(picture), built(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))(picture * 0.5 + 30)
    torch.testing.assert_close(plain.values, dull.values, rtol=1e-5, atol=1e-5)


def test_full_size() -> None:
    spec = Pix2Struct()
    with torch.device("meta"):
        state = spec.build(BuildContext(torch.bfloat16)).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes(18, 1536, 3968, 16, 4096)
    assert len(state) == 167
    assert spec.parameters() == sum(tensor.numel() for tensor in state.values())
    assert round(spec.parameters() / 1e6, 1) == 512.8
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert spec.maps == (("pix2struct", -1, 45, 45, 1536),)


def test_counts_are_what_torch_counts() -> None:
    check_counts(Pix2Struct(**SHAPE))


def test_recomputed_layers_give_the_same_gradients_and_keep_less() -> None:
    check_recomputing(built, lambda model: model.encoder.layer[1].attention, tiles())
    kept = []
    for recompute in ("none", "full"):
        saved: list[int] = []
        model = built(BuildContext(torch.float32, recompute=recompute))
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=saved: to.append(t.numel()) or t, lambda t: t):
            model(tiles())
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 2


def test_gradient_reaches_the_pixels_of_its_own_tile() -> None:
    assert gradient_of_first_cell(built(), tiles())[:, 40:, 40:].any()


@pytest.mark.parametrize(
    ("change", "said"), [({"heads": 5}, "does not divide"), ({"positions": 4}, "a tile has 4 rows, counted from 1")]
)
def test_impossible_shapes(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Pix2Struct.parse({**SHAPE, **change})
