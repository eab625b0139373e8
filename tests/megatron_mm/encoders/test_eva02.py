"""EVA-02's detection backbone against its layers in plain torch, and against the published names and sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expert_checks import (
    HERE,
    Shapes,
    Weights,
    check_counts,
    check_recomputing,
    drawn,
    gradient_of_first_cell,
    inside,
    linear,
    norm,
    random_tiles,
)
from torch import Tensor

from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.eva02 import Eva02
from megavlm.platform.errors import ConfigError

# Windows of 4 x 4 patches in a tile of 8 x 8; the table is for 3 x 3; block 1 of 0..2 sees all.
SHAPE: dict[str, Any] = {
    "image_size": 40, "trained_size": 15, "patch_size": 5, "layers": 3, "hidden": 32, "heads": 4, "ffn": 21,
    "window": 4, "global_every": 2, "rope_side": 6,
}  # fmt: skip
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # the detector's pixel_mean and pixel_std, RGB


def shapes(layers: int, h: int, ffn: int, patch: int, trained: int) -> Shapes:
    """The published checkpoint's backbone.net, without the tables of its rotary positions."""
    one: Shapes = {"attn.q_bias": (h,), "attn.v_bias": (h,)}
    one |= {f"attn.{name}_proj.weight": (h, h) for name in "qkv"}
    one |= {"attn.proj.weight": (h, h), "attn.proj.bias": (h,)}
    one |= {f"norm{i}.{name}": (h,) for i in (1, 2) for name in ("weight", "bias")}
    one |= {"mlp.w1.weight": (ffn, h), "mlp.w1.bias": (ffn,), "mlp.w2.weight": (ffn, h), "mlp.w2.bias": (ffn,)}
    one |= {"mlp.ffn_ln.weight": (ffn,), "mlp.ffn_ln.bias": (ffn,), "mlp.w3.weight": (h, ffn), "mlp.w3.bias": (h,)}
    return {
        "pos_embed": (1, (trained // patch) ** 2 + 1, h),
        "patch_embed.proj.weight": (h, 3, patch, patch),
        "patch_embed.proj.bias": (h,),
        **{f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in one.items()},
    }


def published() -> Weights:
    return drawn(shapes(3, 32, 21, 5, 15))


def tiles() -> Tensor:
    return random_tiles(2, 40)


def turned(x: Tensor, side: int) -> Tensor:
    """[..., side, side, 8] of a head: two pairs turn by the row, two by the column; a grid always spans 0..6."""
    turn = torch.arange(side, dtype=torch.float64) * 6 / side
    by_row = turn[:, None] * torch.tensor([1.0, 10000**-0.5], dtype=torch.float64)
    angle = torch.cat([by_row[:, None].expand(side, side, 2), by_row[None].expand(side, side, 2)], dim=-1)
    pairs = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def attention(w: Weights, x: Tensor) -> Tensor:
    """[side, side, 32] of one window, or of one tile."""
    q, k, v = (x @ w[f"attn.{name}_proj.weight"].T for name in "qkv")
    q, v = q + w["attn.q_bias"], v + w["attn.v_bias"]
    q, k, v = (each.unflatten(-1, (4, 8)).permute(2, 0, 1, 3) for each in (q, k, v))
    q, k = turned(q, len(x)).flatten(1, 2), turned(k, len(x)).flatten(1, 2)
    out = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v.flatten(1, 2)
    return linear(w, "attn.proj", out.transpose(0, 1).reshape(x.shape))


def statement(weights: Weights, tile: Tensor) -> Tensor:
    """One tile [3, 40, 40] -> [64, 32], in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    pixels = (tile.double() - torch.tensor(MEAN)[:, None, None].double()) / torch.tensor(STD)[:, None, None].double()
    x = F.conv2d(pixels[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=5)
    table = w["pos_embed"][:, 1:].view(1, 3, 3, 32).permute(0, 3, 1, 2)
    x = x + F.interpolate(table, size=(8, 8), mode="bicubic", align_corners=False)
    x = x[0].permute(1, 2, 0)
    for i in range(3):
        p = inside(w, f"blocks.{i}.")
        y, side = norm(p, "norm1", x), 8 if i == 1 else 4
        out = torch.empty_like(y)
        for top in range(0, 8, side):
            for left in range(0, 8, side):
                window = (slice(top, top + side), slice(left, left + side))
                out[window] = attention(p, y[window])
        x = x + out
        y = norm(p, "norm2", x)
        gate = linear(p, "mlp.w1", y)
        x = x + linear(p, "mlp.w3", norm(p, "mlp.ffn_ln", gate * torch.sigmoid(gate) * linear(p, "mlp.w2", y)))
    return x.flatten(0, 1).float()


def built(ctx: BuildContext = HERE) -> Any:
    model = Eva02(**SHAPE).build(ctx)
    model.load_state_dict(published())  # strictly: exactly the published names
    return model


def test_equals_the_published_last_block() -> None:
    (feature,) = built()(tiles())
    assert (feature.grid, feature.layer, feature.expert) == ((8, 8), -1, "eva02")
    assert feature.images.tolist() == [0, 1]
    wanted = torch.cat([statement(published(), tile) for tile in tiles()])
    torch.testing.assert_close(feature.values, wanted, rtol=1e-5, atol=1e-5)


def test_full_size() -> None:
    spec = Eva02()
    with torch.device("meta"):
        state = spec.build(BuildContext(torch.bfloat16)).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes(24, 1024, 2730, 16, 224)
    assert spec.parameters() == sum(tensor.numel() for tensor in state.values())
    assert round(spec.parameters() / 1e6, 1) == 303.4
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert spec.maps == (("eva02", -1, 64, 64, 1024),)
    assert [block for block in range(24) if spec.sees_all(block)] == [2, 5, 8, 11, 14, 17, 20, 23]


def test_counts_are_what_torch_counts() -> None:
    check_counts(Eva02(**{**SHAPE, "trained_size": 40}))  # resizing a table is none of what is counted
    assert Eva02(**SHAPE).parameters() == sum(p.numel() for p in built().parameters())


def test_recomputed_blocks_give_the_same_gradients() -> None:
    check_recomputing(built, lambda model: model.blocks[1].attn, tiles())


def test_recomputing_keeps_less() -> None:
    """What autograd saves: of a block its input alone, not what is inside."""
    kept = []
    for recompute in ("none", "full"):
        saved: list[int] = []
        model = built(BuildContext(torch.float32, recompute=recompute))
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=saved: to.append(t.numel()) or t, lambda t: t):
            model(tiles())
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 4


def test_gradient_reaches_the_pixels_of_its_own_tile() -> None:
    assert gradient_of_first_cell(built(), tiles())[:, 35:, 35:].any()  # from the other corner, through one block


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 5}, "does not divide"),
        ({"image_size": 42}, "encoder.image_size 42 does not divide"),
        ({"trained_size": 16}, "encoder.trained_size 16 does not divide"),
        ({"window": 3}, "does not divide by encoder.window 3"),
        ({"heads": 16}, "is 2: rotary positions"),
    ],
)
def test_impossible_shapes(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Eva02.parse({**SHAPE, **change})
