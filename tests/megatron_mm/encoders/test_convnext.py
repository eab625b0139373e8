"""ConvNeXt against its paper's blocks in plain torch, and against the published names and sizes."""

from __future__ import annotations

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
    gelu,
    initialised,
    inside,
    normalised,
    random_tiles,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.convnext import ConvNeXt
from megavlm.platform.errors import ConfigError

SHAPE = {"image_size": 64, "depths": (1, 2, 3, 1), "dims": (8, 12, 16, 24)}
XXL = ((3, 4, 30, 3), (384, 768, 1536, 3072))


def shapes_of(depths: tuple[int, ...], dims: tuple[int, ...]) -> Shapes:
    """The trunk of the published checkpoint: names and shapes."""
    named: Shapes = {"stem.0.weight": (dims[0], 3, 4, 4), "stem.0.bias": (dims[0],)}
    named |= {"stem.1.weight": (dims[0],), "stem.1.bias": (dims[0],)}
    for stage, (depth, width) in enumerate(zip(depths, dims, strict=True)):
        if stage:
            before, place = dims[stage - 1], f"stages.{stage}.downsample"
            named |= {f"{place}.0.weight": (before,), f"{place}.0.bias": (before,)}
            named |= {f"{place}.1.weight": (width, before, 2, 2), f"{place}.1.bias": (width,)}
        for block in range(depth):
            one = block_shapes(width)
            named |= {f"stages.{stage}.blocks.{block}.{name}": shape for name, shape in one.items()}
    named |= {"head.norm.weight": (dims[-1],), "head.norm.bias": (dims[-1],)}
    return named | {"head.fc.weight": (1024, dims[-1]), "head.fc.bias": (1024,)}


def block_shapes(d: int) -> Shapes:
    return {
        "gamma": (d,),
        "conv_dw.weight": (d, 1, 7, 7), "conv_dw.bias": (d,),
        "norm.weight": (d,), "norm.bias": (d,),
        "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,),
        "mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,),
    }  # fmt: skip


def published() -> Weights:
    return drawn(shapes_of(SHAPE["depths"], SHAPE["dims"]))


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """Over the channels of [n, c, rows, columns], one cell at a time."""
    x = x - x.mean(1, keepdim=True)
    x = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return x * w[f"{name}.weight"].view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1)


def statement(weights: Weights, tiles: Tensor) -> Tensor:
    """The paper's network in float64, [n, c, rows, columns]; a Linear over channels is a 1 x 1 convolution."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = F.conv2d(normalised(tiles, CLIP), w["stem.0.weight"], w["stem.0.bias"], stride=4)
    x = norm(w, "stem.1", x)
    for stage, depth in enumerate(SHAPE["depths"]):
        if stage:
            at = f"stages.{stage}.downsample"
            x = F.conv2d(norm(w, f"{at}.0", x), w[f"{at}.1.weight"], w[f"{at}.1.bias"], stride=2)
        for number in range(depth):
            x = x + block(inside(w, f"stages.{stage}.blocks.{number}."), x)
    return x


def block(p: Weights, x: Tensor) -> Tensor:
    """What a block adds."""
    y = F.conv2d(x, p["conv_dw.weight"], p["conv_dw.bias"], padding=3, groups=x.shape[1])
    y = F.conv2d(norm(p, "norm", y), p["mlp.fc1.weight"][:, :, None, None], p["mlp.fc1.bias"])
    y = F.conv2d(gelu(y), p["mlp.fc2.weight"][:, :, None, None], p["mlp.fc2.bias"])
    return p["gamma"].view(-1, 1, 1) * y


def tiles(side: int = 64) -> Tensor:
    return random_tiles(3, side)


def built(ctx: BuildContext = HERE, **changes: Any) -> Any:
    model = ConvNeXt(**{**SHAPE, **changes}).build(ctx)
    assert not model.load_state_dict(published(), strict=False).missing_keys
    return model


@pytest.mark.parametrize("side", [64, 96])
def test_equals_the_papers_network(side: int) -> None:
    (feature,) = built(image_size=side)(tiles(side))
    assert (feature.grid, feature.layer, feature.expert) == ((side // 32, side // 32), -1, "convnext")
    assert feature.images.tolist() == [0, 1, 2]
    wanted = statement(published(), tiles(side)).permute(0, 2, 3, 1).float()
    torch.testing.assert_close(feature.tiles, wanted, rtol=1e-5, atol=1e-5)


def test_takes_the_published_names_and_leaves_the_head() -> None:
    left = ConvNeXt(**SHAPE).build(HERE).load_state_dict(published(), strict=False)
    assert not left.missing_keys
    assert left.unexpected_keys == ["head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"]


def test_full_size() -> None:
    """ConvNeXt-XXL: 380 tensors and 846.5 M parameters are published, of which the head is 3.15 M."""
    shapes, spec = shapes_of(*XXL), ConvNeXt()
    assert len(shapes) == 380
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 846_544_768
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = spec.build(BuildContext(torch.bfloat16))
        (feature,) = model(torch.empty(2, 3, 1024, 1024, dtype=torch.uint8))
    assert counter.get_total_flops() == 2 * spec.flops().forward
    state = model.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: shape for name, shape in shapes.items() if not name.startswith("head.")
    }
    assert spec.parameters() == sum(tensor.numel() for tensor in state.values()) == 843_391_872
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert feature.values.dtype == torch.bfloat16
    assert feature.tiles.shape == (2, 32, 32, 3072) and spec.maps == (("convnext", -1, 32, 32, 3072),)


def test_counts_are_what_torch_counts() -> None:
    check_counts(ConvNeXt(**SHAPE))


def test_flops_are_the_papers() -> None:
    """Eagle's figure 4: CLIP-L on 576 patches, ConvNeXt and a 1024-wide MLP are 3347.2 G products."""
    clip = 576 * (24 * 12 * 1024**2 + 3 * 14**2 * 1024)
    mlp = 1024 * ((1024 + 3072) * 1024 + 1024**2)
    assert clip + ConvNeXt().flops().forward / 2 + mlp == pytest.approx(3347.2e9, rel=1e-4)


def test_recomputed_blocks_give_the_same_values_and_gradients() -> None:
    check_recomputing(built, lambda model: model.stages[2].blocks[1].mlp, tiles())


def test_gradient_reaches_the_pixels_of_its_tile_only() -> None:
    pixels = tiles().float().requires_grad_()
    (feature,) = built()(pixels)
    feature.tiles[1].square().sum().backward()
    assert pixels.grad[1].flatten(1).any(1).all()
    assert not pixels.grad[0].any() and not pixels.grad[2].any()


def test_layer_scale_starts_at_its_key(one_process: BuildContext) -> None:
    model = initialised(ConvNeXt(**SHAPE, layer_scale=0.25), one_process)
    assert model.stages[2].blocks[1].gamma.tolist() == [0.25] * 16
    assert model.stages[2].blocks[1].norm.weight.tolist() == [1.0] * 16


def test_impossible_shapes() -> None:
    with pytest.raises(ConfigError, match="encoder.image_size 1000 does not divide by 32") as error:
        ConvNeXt.parse({"image_size": 1000})
    assert error.value.fix == "set it to 1024"
    with pytest.raises(ConfigError, match="depths"):
        ConvNeXt.parse({"depths": (3, 3, 9)})
