"""SAM's encoder against its layers in plain torch, window by window, and against the published names and sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expert_checks import (
    HERE,
    IMAGENET,
    Shapes,
    Weights,
    check_counts,
    check_recomputing,
    drawn,
    gelu,
    gradient_of_first_cell,
    initialised,
    inside,
    linear,
    norm,
    normalised,
    random_tiles,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.sam import Sam
from megavlm.platform.errors import ConfigError

# 10 x 10 patches in windows of 4, so that the last windows are half empty; layer 1 of 3 is global.
SHAPE = {"image_size": 40, "patch_size": 4, "layers": 3, "hidden": 16, "heads": 2, "ffn": 24}
SHAPE |= {"window": 4, "global_layers": (1,), "neck_channels": 6}
LARGE = {"side": 64, "patch": 16, "layers": 24, "h": 1024, "heads": 16, "ffn": 4096, "window": 14, "out": 256}
SMALL = {"side": 10, "patch": 4, "layers": 3, "h": 16, "heads": 2, "ffn": 24, "window": 4, "out": 6}
REST_OF_NECK = ["neck.conv2.weight", "neck.layer_norm2.weight", "neck.layer_norm2.bias"]


def shapes_of(
    wide: tuple[int, ...], side: int, patch: int, layers: int, h: int, heads: int, ffn: int, window: int, out: int
) -> Shapes:
    """The published checkpoint's vision_encoder: names and shapes; layers in `wide` are global."""
    named: Shapes = {"pos_embed": (1, side, side, h)}
    named |= {"patch_embed.projection.weight": (h, 3, patch, patch), "patch_embed.projection.bias": (h,)}
    for number in range(layers):
        reach = side if number in wide else window
        named |= {f"layers.{number}.{k}": v for k, v in layer_shapes(h, ffn, h // heads, reach).items()}
    named |= {"neck.conv1.weight": (out, h, 1, 1), "neck.conv2.weight": (out, out, 3, 3)}
    return named | {f"neck.layer_norm{i}.{end}": (out,) for i in (1, 2) for end in ("weight", "bias")}


def layer_shapes(h: int, ffn: int, head: int, reach: int) -> Shapes:
    return {
        "layer_norm1.weight": (h,), "layer_norm1.bias": (h,), "layer_norm2.weight": (h,), "layer_norm2.bias": (h,),
        "attn.rel_pos_h": (2 * reach - 1, head), "attn.rel_pos_w": (2 * reach - 1, head),
        "attn.qkv.weight": (3 * h, h), "attn.qkv.bias": (3 * h,), "attn.proj.weight": (h, h), "attn.proj.bias": (h,),
        "mlp.lin1.weight": (ffn, h), "mlp.lin1.bias": (ffn,), "mlp.lin2.weight": (h, ffn), "mlp.lin2.bias": (h,),
    }  # fmt: skip


def published(wide: tuple[int, ...] = (1,)) -> Weights:
    return drawn(shapes_of(wide, **SMALL))


def attention(p: Weights, x: Tensor) -> Tensor:
    """Of all cells of [n, s, s, h] with each other: q k / sqrt(d) + q (R_h of the rows apart + R_w of the columns)."""
    side, head = x.shape[1], 8
    q, k, v = linear(p, "attn.qkv", x).flatten(1, 2).unflatten(-1, (3, 2, head)).unbind(2)  # [n, cells, heads, d]
    place = torch.arange(side * side)
    rows, columns = (at[:, None] - at[None, :] + side - 1 for at in (place // side, place % side))
    relative = p["attn.rel_pos_h"][rows] + p["attn.rel_pos_w"][columns]  # [query, key, d]
    scores = torch.einsum("nqad,nkad->naqk", q, k) / head**0.5 + torch.einsum("nqad,qkd->naqk", q, relative)
    seen = torch.einsum("naqk,nkad->nqad", scores.softmax(-1), v).flatten(2)
    return linear(p, "attn.proj", seen).unflatten(1, (side, side))


def windowed(p: Weights, x: Tensor, window: int) -> Tensor:
    """The same inside each square of `window` cells; those that reach over the edge see zeros there."""
    n, side, _, width = x.shape
    padded = x.new_zeros(n, 12, 12, width)
    padded[:, :side, :side] = x
    for row in range(0, 12, window):
        for column in range(0, 12, window):
            at = (slice(None), slice(row, row + window), slice(column, column + window))
            padded[at] = attention(p, padded[at])
    return padded[:, :side, :side]


def statement(weights: Weights, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, [n, c, rows, columns]: after the neck's first norm, and after all of it."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    projection = "patch_embed.projection"
    x = F.conv2d(normalised(tiles, IMAGENET), w[f"{projection}.weight"], w[f"{projection}.bias"], stride=4)
    x = x.permute(0, 2, 3, 1) + w["pos_embed"]
    for number in range(3):
        p = inside(w, f"layers.{number}.")
        y = norm(p, "layer_norm1", x)
        x = x + (attention(p, y) if number == 1 else windowed(p, y, 4))
        x = x + linear(p, "mlp.lin2", gelu(linear(p, "mlp.lin1", norm(p, "layer_norm2", x))))
    short = norm(w, "neck.layer_norm1", x @ w["neck.conv1.weight"].flatten(1).T).permute(0, 3, 1, 2)
    whole = F.conv2d(short, w["neck.conv2.weight"], padding=1).permute(0, 2, 3, 1)
    return short, norm(w, "neck.layer_norm2", whole).permute(0, 3, 1, 2)


def tiles() -> Tensor:
    return random_tiles(3, 40)


def built(ctx: BuildContext = HERE, **changes: Any) -> Any:
    model = Sam(**{**SHAPE, **changes}).build(ctx)
    assert not model.load_state_dict(published(), strict=False).missing_keys
    return model


@pytest.mark.parametrize("neck", ["short", "published"])
def test_equals_the_published_layers(neck: str) -> None:
    (feature,) = built(neck=neck, unshuffle=1)(tiles())
    assert (feature.grid, feature.layer, feature.expert) == ((10, 10), -1, "sam")
    assert feature.images.tolist() == [0, 1, 2]
    wanted = statement(published(), tiles())[neck == "published"].permute(0, 2, 3, 1).float()
    torch.testing.assert_close(feature.tiles, wanted, rtol=1e-5, atol=1e-5)


def test_unshuffles_as_published() -> None:
    """Channel c of the cell at (dy, dx) in its square becomes channel 4 c + 2 dy + dx of the square."""
    short, (feature,) = statement(published(), tiles())[0].float(), built()(tiles())
    assert feature.grid == (5, 5) and feature.tiles.shape == (3, 5, 5, 24)
    for c in range(6):
        for dy in range(2):
            for dx in range(2):
                wanted = short[:, c, dy::2, dx::2]
                torch.testing.assert_close(feature.tiles[..., 4 * c + 2 * dy + dx], wanted, rtol=1e-5, atol=1e-5)


def test_takes_the_published_names_and_leaves_what_it_does_not_use() -> None:
    left = Sam(**SHAPE).build(HERE).load_state_dict(published(), strict=False)
    assert not left.missing_keys and sorted(left.unexpected_keys) == sorted(REST_OF_NECK)
    assert not Sam(**SHAPE, neck="published").build(HERE).load_state_dict(published()).unexpected_keys


@pytest.mark.parametrize(
    ("spec", "tensors", "total", "grid"),
    [
        (Sam(), 342, 307_687_936, (32, 32, 1024)),  # as Eagle's checkpoints list them
        (Sam(neck="published", unshuffle=1), 345, 308_278_272, (64, 64, 256)),
    ],
    ids=["Eagle's", "published"],
)
def test_full_size(spec: Sam, tensors: int, total: int, grid: tuple[int, ...]) -> None:
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model = spec.build(BuildContext(torch.bfloat16))
        (feature,) = model(torch.empty(2, 3, 1024, 1024, dtype=torch.uint8))
    assert counter.get_total_flops() == 2 * spec.flops().forward
    state, shapes = model.state_dict(), shapes_of((5, 11, 17, 23), **LARGE)
    left = REST_OF_NECK if spec.neck == "short" else []
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: shape for name, shape in shapes.items() if name not in left
    }
    assert len(state) == tensors and {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert spec.parameters() == sum(tensor.numel() for tensor in state.values()) == total
    assert feature.values.dtype == torch.bfloat16
    assert feature.tiles.shape == (2, *grid) and spec.maps == (("sam", -1, *grid),)


@pytest.mark.parametrize("neck", ["short", "published"])
def test_counts_are_what_torch_counts(neck: str) -> None:
    check_counts(Sam(**SHAPE, neck=neck))


def test_flops_are_the_papers() -> None:
    """Eagle's figure 4: SAM adds 1310.6 G products with weights, 1024 more channels of the MLP among them.

    The paper's tool sees modules only, and so no relative positions: 2 x 14, or 2 x 64, products per channel of a cell.
    """
    flops = Sam().flops()
    relative = (20 * 70**2 * 2 * 14 + 4 * 64**2 * 2 * 64) * 1024
    seen = (flops.weights + flops.entrance) / 2 - relative + 1024**3
    assert seen == pytest.approx(1310.6e9, rel=1e-3)


def test_recomputed_layers_give_the_same_values_and_gradients() -> None:
    check_recomputing(built, lambda model: model.layers[1].attn, tiles())


def test_gradient_reaches_the_pixels_of_its_tile_only() -> None:
    assert gradient_of_first_cell(built(), tiles())[:, -4:, -4:].any()  # through the global layer


def test_a_window_sees_itself_alone() -> None:
    """Without global layers a cell of the first window hears of no pixel beyond it, and of all in it."""
    pixels = tiles().float().requires_grad_()
    model = Sam(**{**SHAPE, "global_layers": (), "unshuffle": 1}).build(HERE)
    model.load_state_dict(published(wide=()), strict=False)
    model(pixels)[0].tiles[1, 0, 0].square().sum().backward()
    assert pixels.grad[1, :, :16, :16].all()
    assert not pixels.grad[1, :, 16:].any() and not pixels.grad[1, :, :, 16:].any()


def test_first_weights(one_process: BuildContext) -> None:
    """Relative positions start from 0, as published; absolute ones are drawn as every table."""
    model = initialised(Sam(**SHAPE), one_process)
    assert not model.layers[0].attn.rel_pos_h.any() and not model.layers[1].attn.rel_pos_w.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 1000}, "encoder.image_size 1000 does not divide by encoder.patch_size 16"),
        ({"image_size": 1008}, "encoder.patch_size 63 does not divide by encoder.unshuffle 2"),
        ({"heads": 5}, "encoder.hidden 1024 does not divide by encoder.heads 5"),
        ({"layers": 12}, r"names \[17, 23\], and the last of 12 layers is 11"),
        ({"neck": "long"}, "neck"),
    ],
)
def test_impossible_shapes(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Sam.parse(change)
