"""DINOv2 with registers against its papers' layers in plain torch, and against the published names and sizes."""

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

from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.dinov2 import Dinov2
from megavlm.platform.errors import ConfigError

SHAPE = {"image_size": 28, "trained_size": 28, "patch_size": 7, "layers": 3, "hidden": 32, "heads": 4, "ffn": 64}
SHAPE |= {"registers": 3}
# Published name -> ours, as transformers renames them while it loads.
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def shapes_of(layers: int, h: int, ffn: int, patch: int, side: int, registers: int) -> Shapes:
    """The published checkpoint (facebook/dinov2-with-registers-large): names and shapes; `side` patches trained."""
    named: Shapes = {
        "embeddings.cls_token": (1, 1, h), "embeddings.mask_token": (1, h),
        "embeddings.register_tokens": (1, registers, h), "embeddings.position_embeddings": (1, 1 + side**2, h),
        "embeddings.patch_embeddings.projection.weight": (h, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (h,),
        "layernorm.weight": (h,), "layernorm.bias": (h,),
    }  # fmt: skip
    one: Shapes = {"mlp.fc1.weight": (ffn, h), "mlp.fc1.bias": (ffn,), "mlp.fc2.weight": (h, ffn), "mlp.fc2.bias": (h,)}
    for name in RENAMED:
        one |= {f"{name}.weight": (h, h), f"{name}.bias": (h,)}
    for number in (1, 2):
        one |= {f"norm{number}.weight": (h,), f"norm{number}.bias": (h,), f"layer_scale{number}.lambda1": (h,)}
    return named | {f"encoder.layer.{i}.{name}": shape for i in range(layers) for name, shape in one.items()}


def published(side: int = 4) -> Weights:
    return drawn(shapes_of(3, 32, 64, 7, side, 3))


def renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def attention(p: Weights, x: Tensor) -> Tensor:
    q, k, v = (linear(p, f"attention.attention.{name}", x).unflatten(-1, (4, 8)) for name in ("query", "key", "value"))
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / 8**0.5
    return linear(p, "attention.output.dense", torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2))


def cubic(x: float) -> float:
    """Keys' kernel with a = -1/2, which antialiased resizing uses."""
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def taken(old: int, new: int) -> Tensor:
    """[new, old]: the kernel around each new point, wider by as much as the grid shrinks, its weights summing to 1."""
    step = old / new
    wide = max(step, 1.0)
    rows = [[cubic((j + 0.5 - (i + 0.5) * step) / wide) for j in range(old)] for i in range(new)]
    weights = torch.tensor(rows, dtype=torch.float64)
    return weights / weights.sum(1, keepdim=True)


def statement(weights: Weights, tiles: Tensor, table: int = 4) -> Tensor:
    """The papers' network in float64, [n, rows, columns, hidden]; positions of `table` x `table` patches."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    projection = "embeddings.patch_embeddings.projection"
    x = F.conv2d(normalised(tiles, IMAGENET), w[f"{projection}.weight"], w[f"{projection}.bias"], stride=7).permute(
        0, 2, 3, 1
    )
    side, positions = x.shape[1], w["embeddings.position_embeddings"][0]
    grid, matrix = positions[1:].view(table, table, -1), taken(table, side)
    x = (x + torch.einsum("yr,xc,rch->yxh", matrix, matrix, grid)).flatten(1, 2)
    first = w["embeddings.cls_token"][0] + positions[:1]
    x = torch.stack([torch.cat([first, w["embeddings.register_tokens"][0], patches]) for patches in x])
    for number in range(3):
        p = inside(w, f"encoder.layer.{number}.")
        x = x + p["layer_scale1.lambda1"] * attention(p, norm(p, "norm1", x))
        y = gelu(linear(p, "mlp.fc1", norm(p, "norm2", x)))
        x = x + p["layer_scale2.lambda1"] * linear(p, "mlp.fc2", y)
    return norm(w, "layernorm", x)[:, 4:].unflatten(1, (side, side))


def tiles(side: int = 28) -> Tensor:
    return random_tiles(3, side)


def built(ctx: BuildContext = HERE, side: int = 4, **changes: Any) -> Any:
    model = Dinov2(**{**SHAPE, **changes}).build(ctx)
    left = model.load_state_dict({renamed(name): t for name, t in published(side).items()}, strict=False)
    assert not left.missing_keys and left.unexpected_keys == ["embeddings.mask_token"]
    return model


def test_equals_the_papers_network() -> None:
    (feature,) = built()(tiles())
    assert (feature.grid, feature.layer, feature.expert) == ((4, 4), -1, "dinov2")
    assert feature.images.tolist() == [0, 1, 2]
    torch.testing.assert_close(feature.tiles, statement(published(), tiles()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "trained"), [(28, 49), (42, 28), (21, 28)])
def test_positions_are_resized_as_published(side: int, trained: int) -> None:
    """Bicubic with antialiasing, by the kernel's formula."""
    table = trained // 7
    (feature,) = built(side=table, image_size=side, trained_size=trained)(tiles(side))
    wanted = statement(published(table), tiles(side), table).float()
    torch.testing.assert_close(feature.tiles, wanted, rtol=1e-5, atol=1e-5)


def test_full_size() -> None:
    """ViT-L/14 with 4 registers at 448 px: all that is published but the mask token."""
    spec, shapes = Dinov2(), shapes_of(24, 1024, 4096, 14, 37, 4)
    with torch.device("meta"):
        model = spec.build(BuildContext(torch.bfloat16))
        (feature,) = model(torch.empty(2, 3, 448, 448, dtype=torch.uint8))
    state = model.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        renamed(name): shape for name, shape in shapes.items() if name != "embeddings.mask_token"
    }
    assert spec.parameters() == sum(tensor.numel() for tensor in state.values()) == 304_371_712
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert feature.values.dtype == torch.bfloat16
    assert feature.tiles.shape == (2, 32, 32, 1024) and spec.maps == (("dinov2", -1, 32, 32, 1024),)


def test_counts_are_what_torch_counts() -> None:
    """Of positions that fit: to resize them is work on weights, which does not grow with the tiles."""
    check_counts(Dinov2(**SHAPE))


def test_flops_are_the_papers() -> None:
    """Eagle's figure 4: DINOv2 adds 312.7 G products with weights, 1024 more channels of the MLP among them."""
    flops = Dinov2().flops()
    assert (flops.weights + flops.entrance) / 2 + 1024**3 == pytest.approx(312.7e9, rel=1e-3)


def test_recomputed_layers_give_the_same_values_and_gradients() -> None:
    check_recomputing(built, lambda model: model.encoder.layer[1].mlp, tiles(), ("k_proj.bias",))  # moves no softmax


def test_gradient_reaches_the_pixels_of_its_tile_only() -> None:
    assert gradient_of_first_cell(built(), tiles())[:, 21:, 21:].any()  # every patch sees every other


def test_first_weights(one_process: BuildContext) -> None:
    model = initialised(Dinov2(**SHAPE, layer_scale=0.25), one_process)
    assert model.encoder.layer[2].layer_scale2.lambda1.tolist() == [0.25] * 32
    for table in ("cls_token", "register_tokens", "position_embeddings"):
        assert getattr(model.embeddings, table).std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 450}, "encoder.image_size 450 does not divide by encoder.patch_size 14"),
        ({"trained_size": 520}, "encoder.trained_size 520 does not divide by encoder.patch_size 14"),
        ({"heads": 5}, "encoder.hidden 1024 does not divide by encoder.heads 5"),
        ({"ffn": 1000}, "encoder.ffn 1000 does not divide by encoder.hidden 1024"),
    ],
)
def test_impossible_shapes(change: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Dinov2.parse(change)
