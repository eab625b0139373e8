"""MMFuser against its formulas in double precision, its published size, and what it must be at first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm.backend import initialise
from megavlm.megatron_mm.connectors.mlp import mlp_parameters
from megavlm.megatron_mm.connectors.mmfuser import MMFuser
from megavlm.megatron_mm.contracts import BuildContext, FeatureMap
from megavlm.megatron_mm.flops import Flops
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

ROWS, COLUMNS, CHANNELS, WIDTH, TILES = 3, 4, 8, 6, 2
LAYERS = (3, 8, 23)
MAPS = [MapShape("clip", layer, ROWS, COLUMNS, CHANNELS) for layer in LAYERS]
SMALL = {"levels": 2, "heads": 2, "points": 3}
PUBLISHED = [MapShape("clip", layer, 24, 24, 1024) for layer in (3, 8, 13, 18, 23)]
KINDS = ["deformable", "global", "linear_sra"]


Features = Callable[[Sequence[MapShape], int], list[FeatureMap]]


@torch.no_grad()
def perturbed(model: nn.Module) -> nn.Module:
    """First weights and then some, so that nothing is zero and the points lie anywhere."""
    initialise(model, seed=3)
    draw = torch.Generator().manual_seed(4)
    for p in model.parameters():
        p.add_(0.5 * torch.randn(p.shape, generator=draw))
    return model


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def tent(at: Tensor, count: int) -> Tensor:
    """How near each cell's centre is to `at`, in cells from the first's edge: [..., count]."""
    return (1 - (at[..., None] - torch.arange(count) - 0.5).abs()).clamp(min=0)


def deformable(weights: dict[str, Tensor], query: Tensor, levels: list[Tensor], heads: int, points: int) -> Tensor:
    """Deformable DETR's equation 3 of one image: every cell of every map, weighted by two tents around each point."""
    cells, channels = query.shape
    many = (cells, heads, len(levels), points)
    offsets = linear(weights, "sampling_offsets", query).view(*many, 2)
    shares = linear(weights, "attention_weights", query).view(cells, heads, -1).softmax(-1).view(many)
    out = torch.zeros(cells, heads, channels // heads, dtype=query.dtype)
    for index, level in enumerate(levels):
        values = linear(weights, "value_proj", level).view(ROWS, COLUMNS, heads, -1)
        for q in range(cells):
            row, column = divmod(q, COLUMNS)  # equal grids: an offset of 1 is one cell of any level
            x = column + 0.5 + offsets[q, :, index, :, 0]
            y = row + 0.5 + offsets[q, :, index, :, 1]
            read = torch.einsum("hpr,hps,rshd->hpd", tent(y, ROWS), tent(x, COLUMNS), values)
            out[q] += (shares[q, :, index, :, None] * read).sum(1)
    return linear(weights, "output_proj", out.flatten(1))


def softmax(weights: dict[str, Tensor], query: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Softmax attention of one image, head by head."""
    q = linear(weights, "query_proj", query).chunk(heads, -1)
    k, v = (x.chunk(heads, -1) for x in linear(weights, "key_value_proj", keys).chunk(2, -1))
    read = [(a @ b.T / math.sqrt(a.shape[1])).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]
    return linear(weights, "output_proj", torch.cat(read, -1))


def reduced(weights: dict[str, Tensor], levels: list[Tensor]) -> Tensor:
    """PVTv2's keys: adaptive average pooling to 7 x 7, a convolution of 1 x 1, LayerNorm, GELU."""
    kernel = weights["reduction.weight"][:, :, None, None]
    keys = []
    for level in levels:
        image = F.adaptive_avg_pool2d(level.T.view(1, CHANNELS, ROWS, COLUMNS), 7)
        x = F.conv2d(image, kernel, weights["reduction.bias"]).flatten(2)[0].T
        keys.append(F.gelu(norm(weights, "norm", x, 1e-5)))
    return torch.cat(keys)


def attend(kind: str, weights: dict[str, Tensor], query: Tensor, levels: list[Tensor]) -> Tensor:
    if kind == "deformable":
        return deformable(weights, query, levels, SMALL["heads"], SMALL["points"])
    return softmax(weights, query, reduced(weights, levels) if kind == "linear_sra" else torch.cat(levels), 2)


def under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): w for name, w in weights.items() if name.startswith(f"{prefix}.")}


def stated(kind: str, w: dict[str, Tensor], maps: list[Tensor], self_attention: bool) -> Tensor:
    """The formulas of ms_cross_attn.py for one image, float64."""
    *others, last = maps
    read = attend(kind, under(w, "cross_attn"), norm(w, "query_norm", last), [norm(w, "feat_norm", x) for x in others])
    if self_attention:
        x = norm(w, "norm1", read)
        read = read + w["gamma2"] * attend(kind, under(w, "self_attn"), x, [x])
    return last + w["gamma1"] * read


@pytest.mark.parametrize("self_attention", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_formulas_in_double_precision(
    one_process: BuildContext, features: Features, kind: str, self_attention: bool
) -> None:
    spec = MMFuser(**SMALL, attention=kind, self_attention=self_attention)
    model = perturbed(spec.build(one_process, MAPS, WIDTH))
    maps = features(MAPS, TILES)
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    fused = torch.cat([
        stated(kind, under(weights, "fuser"), [m.tiles[i].flatten(0, 1).double() for m in maps], self_attention)
        for i in range(TILES)
    ])  # fmt: skip
    *others, last = (m.tiles.flatten(1, 2) for m in maps)
    found = model.fuser(last, torch.cat(others, 1)).flatten(0, 1)
    torch.testing.assert_close(found.double(), fused, rtol=1e-5, atol=1e-5)
    wanted = linear(weights, "projector.2", F.gelu(linear(weights, "projector.0", fused)))
    tokens = model(maps)
    torch.testing.assert_close(tokens.values.double(), wanted, rtol=1e-5, atol=1e-5)
    assert tokens.segments.tolist() == [0] * 12 + [1] * 12
    assert sum(p.numel() for p in model.parameters()) == spec.parameters(MAPS, WIDTH)
    assert sum(p.numel() for p in model.fuser.parameters()) == spec.parts(MAPS, WIDTH)["fuser"]


def test_the_published_sizes(one_process: BuildContext) -> None:
    spec = MMFuser()
    with torch.device("meta"):
        model = spec.build(one_process, PUBLISHED, 4096)
    assert sum(p.numel() for p in model.fuser.parameters()) == 5_190_592
    assert spec.parts(PUBLISHED, 4096) == {"fuser": 5_190_592, "projector": mlp_parameters(1024, 4096)}
    assert spec.tokens_per_tile(PUBLISHED) == 576
    shapes = {name: tuple(p.shape) for name, p in model.fuser.named_parameters()}
    assert shapes["cross_attn.sampling_offsets.weight"] == (512, 1024)
    assert shapes["self_attn.attention_weights.weight"] == (64, 1024)
    assert {name.split(".")[0] for name in shapes} == {
        "gamma1", "gamma2", "query_norm", "feat_norm", "norm1", "cross_attn", "self_attn",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_it_is_the_last_layer_and_only_gamma1_learns(
    one_process: BuildContext, features: Features, kind: str
) -> None:
    model = MMFuser(**SMALL, attention=kind).build(one_process, MAPS, WIDTH)
    initialise(model, seed=1)
    *others, last = (m.tiles.flatten(1, 2) for m in features(MAPS, TILES))
    fused = model.fuser(last, torch.cat(others, 1))
    assert torch.equal(fused, last)
    (fused * torch.randn(fused.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    assert {name for name, p in model.fuser.named_parameters() if p.grad.any()} == {"gamma1"}


def test_first_offsets_are_a_grid_of_directions(one_process: BuildContext) -> None:
    """Deformable DETR, appendix A.4: eight heads at (-1, -1), (-1, 0), ..., point k of each k cells away."""
    maps = [m._replace(channels=16) for m in MAPS]
    model = MMFuser(levels=2, heads=8, points=3).build(one_process, maps, WIDTH)
    initialise(model, seed=1)
    attention = model.fuser.cross_attn
    offsets = attention.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    around = {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)} - {(0, 0)}
    for point in range(3):
        for level in range(2):
            near = offsets[:, level, point] / (point + 1)
            assert {tuple(pair) for pair in near.round().int().tolist()} == around
            torch.testing.assert_close(near, near.round(), rtol=0, atol=1e-6)
    assert offsets[0, 0, 0].tolist() == [1.0, 0.0]
    for zero in (attention.sampling_offsets.weight, attention.attention_weights.weight, attention.value_proj.bias):
        assert not zero.any()
    assert attention.value_proj.weight.std().item() == pytest.approx(1 / 4, rel=0.2)  # Xavier's at 16 channels


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_changes_nothing(one_process: BuildContext, features: Features, kind: str) -> None:
    grads = []
    for recompute in ("none", "full"):
        ctx = dataclasses.replace(one_process, recompute=recompute)
        model = perturbed(MMFuser(**SMALL, attention=kind).build(ctx, MAPS, WIDTH))
        model(features(MAPS, TILES)).values.square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) and grads[0][name].any() for name in grads[0])


def test_in_bfloat16_places_stay_exact(one_process: BuildContext) -> None:
    """Far from the first cell bfloat16 cannot tell neighbours apart; a query must still read its own cell."""
    maps = [MapShape("clip", layer, 1, 512, 4) for layer in (1, 2)]
    ctx = dataclasses.replace(one_process, params_dtype=torch.bfloat16)
    model = MMFuser(levels=1, heads=1, points=1, self_attention=False).build(ctx, maps, WIDTH)
    initialise(model, seed=1)
    attention = model.fuser.cross_attn
    with torch.no_grad():
        attention.sampling_offsets.bias.zero_()
        for each in (attention.value_proj, attention.output_proj):
            each.weight.copy_(torch.eye(4))
    values = torch.randn(1, 512, 4).bfloat16()
    found = attention(torch.zeros_like(values), values)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, values, rtol=1e-2, atol=1e-2)


def test_of_no_tiles_come_no_tokens(
    one_process: BuildContext, of_no_tiles: Callable[[nn.Module, Sequence[MapShape], int], None]
) -> None:
    of_no_tiles(MMFuser(**SMALL).build(one_process, MAPS, WIDTH), MAPS, WIDTH)


@pytest.mark.parametrize(
    ("maps", "match"),
    [
        (MAPS[:2], "reads 2 maps and fuses them into one more, and the encoder gives 2"),
        ([*MAPS, MAPS[0]], "the encoder gives 4"),
        ([MAPS[0]._replace(rows=5), *MAPS[1:]], "on one grid"),
        ([MAPS[0]._replace(channels=4), *MAPS[1:]], "of one width"),
        ([MAPS[0]._replace(expert="convnext"), *MAPS[1:]], "layers of one expert"),
        ([MAPS[1], *MAPS[1:]], "different layers"),
        ([m._replace(channels=9) for m in MAPS], "channels of the encoder's maps 9 does not divide by connector.heads"),
    ],
)
def test_maps_that_are_not_layers_of_one_expert_are_refused(maps: list[MapShape], match: str) -> None:
    spec = MMFuser(**SMALL)
    for ask in (spec.tokens_per_tile, lambda m: spec.parameters(m, WIDTH), lambda m: spec.flops(m, WIDTH)):
        with pytest.raises(ConfigError, match=match):
            ask(maps)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_that_torch_counts(one_process: BuildContext, features: Features, kind: str) -> None:
    """Torch counts no sampled points, and it counts the averaging of linear_sra."""
    spec = MMFuser(**SMALL, attention=kind)
    model = perturbed(spec.build(one_process, MAPS, WIDTH))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(features(MAPS, TILES))
    told, counted = spec.flops(MAPS, WIDTH), counter.get_total_flops() / TILES
    if kind == "deformable":
        sampled = 12 * 2 * 3 * (2 + 1) * 4 * CHANNELS // 2  # cells, heads, points, levels, corners, a head's channels
        assert told == Flops(weights=counted, mixing=2.0 * sampled)
    else:
        averaging = 2 * 3 * CHANNELS * (7 * 12 + 7 * 7 * 4) if kind == "linear_sra" else 0
        assert told.forward == counted - averaging and told.mixing > 0
