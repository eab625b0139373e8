"""CLIP's and SigLIP's towers against their papers' layers in plain torch, and against the published names and sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expert_checks import (
    CLIP,
    HERE,
    Shapes,
    Weights,
    check_counts,
    check_recomputing,
    drawn,
    inside,
    linear,
    norm,
    normalised,
    random_tiles,
)
from torch import Tensor

from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.clip import Clip
from megavlm.megatron_mm.encoders.replicated import Replicated
from megavlm.megatron_mm.encoders.siglip import Siglip
from megavlm.platform.errors import ConfigError

SHAPE = {"image_size": 30, "patch_size": 7, "layers": 4, "hidden": 32, "heads": 4, "ffn": 48}  # a border of 2 px
CLIP_L336, SO400M = (24, 1024, 4096, 14, 336), (27, 1152, 4304, 14, 384)
BASE = {"image_size": 224, "patch_size": 16, "layers": 12, "hidden": 768, "heads": 12, "ffn": 3072}
FAMILIES = pytest.mark.parametrize("kind", [Clip, Siglip], ids=["clip", "siglip"])


def clip_shapes(layers: int, h: int, ffn: int, patch: int, side: int) -> Shapes:
    """The published checkpoint's vision_model: names and shapes."""
    return {
        "embeddings.class_embedding": (h,),
        "embeddings.patch_embedding.weight": (h, 3, patch, patch),
        "embeddings.position_embedding.weight": ((side // patch) ** 2 + 1, h),
        "pre_layrnorm.weight": (h,), "pre_layrnorm.bias": (h,),
        "post_layernorm.weight": (h,), "post_layernorm.bias": (h,),
        **layer_shapes(layers, h, ffn),
    }  # fmt: skip


def siglip_shapes(layers: int, h: int, ffn: int, patch: int, side: int) -> Shapes:
    return {
        "embeddings.patch_embedding.weight": (h, 3, patch, patch), "embeddings.patch_embedding.bias": (h,),
        "embeddings.position_embedding.weight": ((side // patch) ** 2, h),
        "post_layernorm.weight": (h,), "post_layernorm.bias": (h,),
        "head.probe": (1, 1, h),
        "head.attention.in_proj_weight": (3 * h, h), "head.attention.in_proj_bias": (3 * h,),
        "head.attention.out_proj.weight": (h, h), "head.attention.out_proj.bias": (h,),
        "head.layernorm.weight": (h,), "head.layernorm.bias": (h,),
        "head.mlp.fc1.weight": (ffn, h), "head.mlp.fc1.bias": (ffn,),
        "head.mlp.fc2.weight": (h, ffn), "head.mlp.fc2.bias": (h,),
        **layer_shapes(layers, h, ffn),
    }  # fmt: skip


def layer_shapes(layers: int, h: int, ffn: int) -> Shapes:
    one: Shapes = {"mlp.fc1.weight": (ffn, h), "mlp.fc1.bias": (ffn,)}
    one |= {"mlp.fc2.weight": (h, ffn), "mlp.fc2.bias": (h,)}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        one |= {f"self_attn.{name}.weight": (h, h), f"self_attn.{name}.bias": (h,)}
    for name in ("layer_norm1", "layer_norm2"):
        one |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}
    return {f"encoder.layers.{i}.{name}": shape for i in range(layers) for name, shape in one.items()}


SHAPES = {Clip: clip_shapes, Siglip: siglip_shapes}


def published(kind: type[Replicated]) -> Weights:
    return {f"vision_model.{name}": tensor for name, tensor in drawn(SHAPES[kind](4, 32, 48, 7, 30)).items()}


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def hidden_states(
    kind: type[Replicated], weights: Weights, tiles: Tensor, table: int = 0, dropped: bool = False
) -> list[Tensor]:
    """In float64, the patches of: the embeddings, then what each layer gives; the last one as the tower ends it.

    `table`: the side of the trained grid where it is not the tile's. `dropped`: the class token goes before the layers.
    """
    clip = kind is Clip
    w = {name.removeprefix("vision_model."): tensor.double() for name, tensor in weights.items()}
    pixels = normalised(tiles, CLIP if clip else ((0.5,) * 3, (0.5,) * 3))
    x = F.conv2d(pixels, w["embeddings.patch_embedding.weight"], w.get("embeddings.patch_embedding.bias"), stride=7)
    side, x = x.shape[-1], x.flatten(2).transpose(1, 2)
    positions = w["embeddings.position_embedding.weight"]
    if table:
        grid = positions[clip:].view(1, table, table, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        positions = torch.cat([positions[:clip], grid[0].flatten(1).T])
    if clip:
        x = torch.cat([w["embeddings.class_embedding"].repeat(len(x), 1, 1), x], dim=1)
    x = x + positions
    eps, gelu = (1e-5, quick_gelu) if clip else (1e-6, tanh_gelu)
    x = x[:, 1:] if dropped else x
    states = [norm(w, "pre_layrnorm", x, eps) if clip else x]
    for i in range(4):
        p = inside(w, f"encoder.layers.{i}.")
        x = states[-1]
        x = x + attention(p, norm(p, "layer_norm1", x, eps))
        states.append(x + linear(p, "mlp.fc2", gelu(linear(p, "mlp.fc1", norm(p, "layer_norm2", x, eps)))))
    if not clip:
        states[-1] = norm(w, "post_layernorm", states[-1], eps)
    return [state[:, int(clip and not dropped) :].flatten(0, 1).float() for state in states]


def attention(p: Weights, x: Tensor) -> Tensor:
    q, k, v = (linear(p, f"self_attn.{name}_proj", x).unflatten(-1, (4, 8)) for name in "qkv")
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / 8**0.5
    return linear(p, "self_attn.out_proj", torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2))


def tiles(side: int = 30) -> Tensor:
    return random_tiles(3, side)


def built(spec: Replicated, weights: Weights, ctx: BuildContext = HERE) -> Any:
    model = spec.build(ctx)
    assert not model.load_state_dict(weights, strict=False).missing_keys
    return model


@FAMILIES
@pytest.mark.parametrize("layer", [0, 2, 4, -1, -2, -4])
def test_equals_the_published_hidden_state(kind: type[Replicated], layer: int) -> None:
    weights = published(kind)
    (feature,) = built(kind(**SHAPE, layer=layer), weights)(tiles())
    assert (feature.grid, feature.layer, feature.expert) == ((4, 4), layer, kind().name)
    assert feature.images.tolist() == [0, 1, 2]
    wanted = hidden_states(kind, weights, tiles())[layer]
    torch.testing.assert_close(feature.values, wanted, rtol=1e-5, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("side", [42, 21])
def test_positions_are_resized_to_the_tile(kind: type[Replicated], side: int) -> None:
    weights = published(kind)
    spec = kind(**{**SHAPE, "image_size": side, "trained_size": 30})
    (feature,) = built(spec, weights)(tiles(side))
    wanted = hidden_states(kind, weights, tiles(side), table=4)[-2]
    torch.testing.assert_close(feature.values, wanted, rtol=1e-5, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("layers", [(1, 3, 4), (-1, 0, 2), (2, 1)])
def test_several_layers_are_several_maps(kind: type[Replicated], layers: tuple[int, ...]) -> None:
    weights, spec = published(kind), kind(**SHAPE, layer=layers)
    features, wanted = built(spec, weights)(tiles()), hidden_states(kind, weights, tiles())
    assert spec.maps == tuple((kind().name, layer, 4, 4, 32) for layer in layers)
    for feature, shape in zip(features, spec.maps, strict=True):
        assert (feature.expert, feature.layer, *feature.grid, feature.values.shape[1]) == shape
        torch.testing.assert_close(feature.values, wanted[feature.layer], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "table"), [(30, 0), (42, 4)])
def test_eagle_takes_the_class_token_out_before_the_layers(side: int, table: int) -> None:
    """The patches keep their own positions, never see the class token, and pass no norm at the end."""
    weights = published(Clip)
    spec = Clip(**{**SHAPE, "image_size": side, "trained_size": 30}, layer=-1, class_token="dropped")
    model = built(spec, weights)
    (feature,) = model(tiles(side))
    wanted = hidden_states(Clip, weights, tiles(side), table=table, dropped=True)[-1]
    torch.testing.assert_close(feature.values, wanted, rtol=1e-5, atol=1e-5)
    assert (feature.values - hidden_states(Clip, weights, tiles(side), table=table)[-1]).abs().max() > 1e-2
    feature.values.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@FAMILIES
def test_takes_the_published_names_and_leaves_what_it_does_not_use(kind: type[Replicated]) -> None:
    """LLaVA's -2: all but the last layer, the norm after it, and SigLIP's pooling."""
    weights = published(kind)
    left = kind(**SHAPE).build(HERE).load_state_dict(weights, strict=False)
    assert not left.missing_keys
    beyond = ("vision_model.encoder.layers.3.", "vision_model.post_layernorm.", "vision_model.head.")
    assert set(left.unexpected_keys) == {name for name in weights if name.startswith(beyond)}


@pytest.mark.parametrize(
    ("spec", "shapes", "total"),
    [
        (Clip(), clip_shapes(*CLIP_L336), 303_507_456),
        (Clip(image_size=224), clip_shapes(*CLIP_L336[:4], 224), 303_179_776),
        (Clip(image_size=448, trained_size=336), clip_shapes(*CLIP_L336), 303_507_456),
        (Clip(layer=-1), clip_shapes(*CLIP_L336), 303_507_456),
        (Clip(layer=-1, class_token="dropped"), clip_shapes(*CLIP_L336), 303_507_456),
        (Clip(layer=(3, 8, 13, 18, 23)), clip_shapes(*CLIP_L336), 303_507_456),
        (Siglip(), siglip_shapes(*SO400M), 428_225_600),
        (Siglip(layer=-1), siglip_shapes(*SO400M), 428_225_600),
        (Siglip(**BASE, layer=-1), siglip_shapes(12, 768, 3072, 16, 224), 92_884_224),
    ],
)
def test_full_size(spec: Replicated, shapes: Shapes, total: int) -> None:
    """The published tower has so many parameters; of them are built those that the hidden state needs."""
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == total
    with torch.device("meta"):
        state = spec.build(BuildContext(torch.bfloat16)).state_dict()
    assert all(tuple(tensor.shape) == shapes[name.removeprefix("vision_model.")] for name, tensor in state.items())
    assert spec.parameters() == sum(tensor.numel() for tensor in state.values())
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_published_counts_of_tensors() -> None:
    assert len(clip_shapes(*CLIP_L336)) == 391  # as LLaVA's and Eagle's checkpoints list them
    assert (Siglip().grid, Clip().grid, Clip(image_size=448).grid) == ((27, 27), (24, 24), (32, 32))


@FAMILIES
@pytest.mark.parametrize("layer", [-1, -2, (1, 3)])
def test_flops_are_what_torch_counts(kind: type[Replicated], layer: int | tuple[int, ...]) -> None:
    check_counts(kind(**SHAPE, layer=layer))


def test_flops_without_class_token() -> None:
    check_counts(Clip(**SHAPE, layer=-1, class_token="dropped"))


@FAMILIES
def test_recomputed_layers_give_the_same_gradients(kind: type[Replicated]) -> None:
    make = partial(built, kind(**SHAPE), published(kind))
    idle = ("k_proj.bias",)  # moves no softmax
    check_recomputing(make, lambda model: model.vision_model.encoder.layers[1].self_attn, tiles(), idle)


@FAMILIES
def test_sees_in_both_directions_and_only_its_tile(kind: type[Replicated]) -> None:
    """The last patch reaches the first; another tile, and the border that fills no patch, reach nothing."""
    pixels = tiles().float().requires_grad_()
    (feature,) = built(kind(**SHAPE), published(kind))(pixels)
    feature.tiles[1, 0, 0].square().sum().backward()
    assert pixels.grad[1, :, 21:28, 21:28].abs().sum() > 0
    assert not pixels.grad[0].any() and not pixels.grad[2].any() and not pixels.grad[:, :, 28:].any()


@FAMILIES
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer": 5}, "4 layers have 5 hidden states"),
        ({"layer": -6}, "4 layers have 5 hidden states"),
        ({"layer": [1, 5]}, "4 layers have 5 hidden states"),
        ({"layer": [3, -2]}, "or one twice"),
        ({"layer": []}, "names no hidden state"),
        ({"heads": 5}, "does not divide"),
        ({"image_size": 6}, "encoder.image_size 6 is less"),
        ({"trained_size": 6}, "encoder.trained_size 6 is less"),
    ],
)
def test_impossible_shapes(kind: type[Replicated], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind.parse({**SHAPE, **change})
