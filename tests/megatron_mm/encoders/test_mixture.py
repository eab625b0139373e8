"""A mixture against its experts one by one, on tiles that were resized by the formula of bilinear interpolation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.clip import Clip
from megavlm.megatron_mm.encoders.convnext import ConvNeXt
from megavlm.megatron_mm.encoders.mixture import Mixture
from megavlm.megatron_mm.encoders.siglip import Siglip
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

HERE = BuildContext(torch.float32)
SIDE = 96
VIT = {"patch_size": 7, "layers": 3, "heads": 4, "ffn": 48}
EXPERTS = {
    "low": {"name": "clip", **VIT, "hidden": 32, "image_size": 42, "layer": [1, 3], "class_token": "dropped"},
    "other": {"name": "siglip", **VIT, "hidden": 24, "image_size": 35, "layer": -1},
    "high": {"name": "convnext", "image_size": SIDE, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 24]},
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def mixture(**options: Any) -> Mixture:
    return Mixture.parse({"image_size": SIDE, "experts": EXPERTS, **options})


def built(spec: Any) -> Any:
    """With random weights, which keep their names' values whatever else is built."""
    model = spec.build(HERE)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return model


def tiles(n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def resized(pixels: Tensor, side: int) -> Tensor:
    """Bilinear, point by point: the corners' centres fall on each other. float64 [n, 3, S, S] -> [n, 3, side, side]."""
    last, out = pixels.shape[-1] - 1, pixels.double()
    for axis in (-1, -2):
        at = [i * last / (side - 1) for i in range(side)]
        parts = []
        for point in at:
            left = min(int(point), last - 1)
            near = out.select(axis, left) * (left + 1 - point) + out.select(axis, left + 1) * (point - left)
            parts.append(near)
        out = torch.stack(parts, dim=axis)
    return out


def test_maps_of_all_in_order_by_their_keys() -> None:
    low = (MapShape("low", 1, 6, 6, 32), MapShape("low", 3, 6, 6, 32))
    other, high = MapShape("other", -1, 5, 5, 24), MapShape("high", -1, 3, 3, 24)
    assert mixture().maps == (*low, other, high)
    assert mixture(use=["high", "low"]).maps == (high, *low)
    for spec in (mixture(), mixture(use=["high", "low"])):
        features = built(spec)(tiles())
        told = [(f.expert, f.layer, *f.grid, f.values.shape[1]) for f in features]
        assert told == [tuple(shape) for shape in spec.maps]
        assert all(f.values.shape[0] == 2 * f.grid[0] * f.grid[1] for f in features)
        assert all(f.images.tolist() == [0, 1] for f in features)


def test_each_expert_sees_the_tile_at_its_own_size() -> None:
    spec = mixture()
    model = built(spec)
    alone = [Clip.parse(EXPERTS["low"]), Siglip.parse(EXPERTS["other"]), ConvNeXt.parse(EXPERTS["high"])]
    wanted = []
    for key, expert in zip(EXPERTS, alone, strict=True):
        single = expert.build(HERE)
        single.load_state_dict(model.experts[key].state_dict())
        same = expert.image_size == SIDE
        wanted += single(tiles() if same else resized(tiles(), expert.image_size).float())
    for feature, one in zip(model(tiles()), wanted, strict=True):
        torch.testing.assert_close(feature.values, one.values, rtol=1e-5, atol=1e-5)


def test_shared_normalisation_is_one_normalised_tensor_for_all() -> None:
    """The released order: normalised as CLIP's, resized, seen by networks that normalise nothing."""
    model = built(mixture(normalisation="shared"))
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    tensor = (tiles() / 255.0 - mean) / std
    nothing = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    plain = Siglip.parse({**EXPERTS["other"], **nothing}).build(HERE)
    plain.load_state_dict(model.experts["other"].state_dict())
    (wanted,) = plain(resized(tensor, 35).float())
    torch.testing.assert_close(model(tiles())[2].values, wanted.values, rtol=1e-5, atol=2e-5)  # both are float32
    own = built(mixture())(tiles())[2].values
    assert (own - wanted.values).abs().max() > 0.1  # SigLIP's own is another


@contextmanager
def kept() -> Iterator[list[Tensor]]:
    """The tensors that autograd keeps for a backward pass."""
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_frozen_expert_keeps_no_graph(recompute: Any) -> None:
    model = mixture(use=["low", "high"]).build(BuildContext(torch.float32, recompute=recompute))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.01)
    model.experts["low"].requires_grad_(False)
    asked: list[bool] = []
    for expert in model.experts.values():
        expert.register_forward_pre_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    with kept() as by_both:
        low, _, high = model(tiles())
    assert asked == [False, True]
    assert low.values.grad_fn is None and not low.values.requires_grad
    high.values.sum().backward()
    assert all((p.grad is None) == name.startswith("experts.low") for name, p in model.named_parameters())
    frozen, free = model.experts["low"].requires_grad_(True), model.experts["high"].requires_grad_(False)
    with kept() as by_low:
        model(tiles())
    frozen.requires_grad_(False)
    free.requires_grad_(True)
    with kept() as by_high:
        free(tiles())
    assert by_low and len(by_both) == len(by_high) > 0
    model.requires_grad_(False)
    with kept() as by_none:
        features = model(tiles())
    assert not by_none and all(f.values.grad_fn is None for f in features)


def test_pixels_that_want_a_gradient_get_one_through_frozen_experts() -> None:
    model = built(mixture()).requires_grad_(False)
    pixels = tiles().float().requires_grad_()
    for feature in model(pixels):
        (grad,) = torch.autograd.grad(feature.values.square().sum(), pixels, retain_graph=True)
        assert grad.abs().sum() > 0


def test_no_tiles() -> None:
    for shape, feature in zip(mixture().maps, built(mixture())(tiles(0)), strict=True):
        assert feature.tiles.shape == (0, shape.rows, shape.columns, shape.channels) and feature.images.tolist() == []
        assert (feature.expert, feature.layer, feature.values.dtype) == (shape.expert, shape.layer, torch.float32)


def test_sums() -> None:
    spec = mixture(use=["other", "high"])
    model = built(spec)
    each = {key: sum(p.numel() for p in model.experts[key].parameters()) for key in ("other", "high")}
    assert dict(spec.parts) == each and spec.parameters() == sum(p.numel() for p in model.parameters())
    other, high = Siglip.parse(EXPERTS["other"]).flops(), ConvNeXt.parse(EXPERTS["high"]).flops()
    assert spec.flops().forward == pytest.approx(other.forward + high.forward)
    assert spec.flops().mixing == other.mixing > 0  # ConvNeXt has no attention
    assert spec.flops().entrance == pytest.approx(other.entrance + high.entrance)


def test_reads_what_it_wrote() -> None:
    for spec in (mixture(), mixture(use=["high"], normalisation="shared")):
        assert Mixture.parse(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use": ["hihg"]}, "unknown expert 'hihg'.*did you mean 'high'"),
        ({"use": []}, "no expert, or one twice"),
        ({"use": ["high", "high"]}, "no expert, or one twice"),
        ({"experts": {}}, "at least 1"),
        ({"experts": {"a.b": EXPERTS["low"]}}, "should match pattern"),
        ({"experts": {"experts": EXPERTS["low"]}}, "cannot be called"),
        ({"experts": {"a": {"name": "clpi"}}}, "unknown encoder 'clpi'.*where: encoder.experts.a "),
        (
            {"experts": {"a": "siglip", "b": {**EXPERTS["low"], "layer": 4}}},
            "experts.b.layer 4: 3 layers.*where: encoder.experts.b.layer",
        ),
        ({"experts": {"a": "siglip", "b": {**EXPERTS["low"], "layrs": 4}}}, "'layrs'.*where: encoder.experts.b.layrs"),
        ({"experts": ["clip"]}, "valid dictionary"),
        ({"experts": {"a": Mixture.parse({"experts": EXPERTS})}}, "made of several encoders"),
    ],
)
def test_impossible_mixtures(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        mixture(**options)
    assert re.search(said, f"{error.value}".replace("\n", " "))


SPLIT = {"name": "internvit", "image_size": 28, "layers": 1, "hidden": 50, "heads": 25, "ffn": 64}


def test_a_layout_that_splits_an_expert_names_it() -> None:
    spec = mixture(experts={**EXPERTS, "split": SPLIT})
    with pytest.raises(ConfigError, match=r"^encoder\.experts\.split\.heads 25 .* parallel\.tp 2") as error:
        spec.check(Parallel(tp=2))
    assert error.value.where == "parallel.tp"
    assert error.value.fix == "set encoder.experts.split.dummy_heads=1, or a tp that divides 25"
    mixture(experts={**EXPERTS, "split": SPLIT}, use=["low"]).check(Parallel(tp=2))  # the others fit every layout


def test_widths_of_fp8_name_the_expert() -> None:
    widths = mixture(experts={**EXPERTS, "split": {**SPLIT, "dummy_heads": 7}}).fp8_widths(Parallel(tp=2))
    assert widths[0] == ("experts.split.hidden", 50, 1) and widths[-1] == ("experts.split.ffn", 64, 2)
    assert len(widths) == 3  # the others run in bfloat16


# Eagle's Figure 4: combination -> millions of parameters, an MLP C -> 1024 -> 1024 included.
EAGLE = {
    "clip": {"name": "clip", "image_size": 336, "layer": -1, "class_token": "dropped"},
    "convnext": "convnext",
    "sam": "sam",
    "eva02": "eva02",
    "pix2struct": "pix2struct",
    "dinov2": "dinov2",
}
X2 = ("clip", "convnext")
PUBLISHED = {
    X2: 1155.2,
    (*X2, "dinov2"): 1460.6,
    (*X2, "sam"): 1463.9,
    (*X2, "pix2struct"): 1669.6,
    (*X2, "eva02"): 1459.6,
    (*X2, "eva02", "dinov2"): 1765.1,
    (*X2, "sam", "eva02"): 1768.4,
    (*X2, "eva02", "pix2struct"): 1974.1,
    (*X2, "eva02", "pix2struct", "dinov2"): 2279.5,
    (*X2, "sam", "eva02", "pix2struct"): 2282.8,
    tuple(EAGLE): 2588.2,
}


@pytest.mark.parametrize("use", PUBLISHED, ids="+".join)
def test_eagles_combinations_count_what_the_paper_says(use: tuple[str, ...]) -> None:
    spec = Mixture.parse({"experts": EAGLE, "use": list(use)})
    channels = sum(shape.channels for shape in spec.maps)
    mlp = (channels + 1) * 1024 + (1024 + 1) * 1024
    unused_head = 3072 + 3072 + 3072 * 1024  # of the published ConvNeXt: norm and projection, which are not built
    assert (spec.parameters() + unused_head + mlp) / 1e6 == pytest.approx(PUBLISHED[use], abs=0.2)


def test_full_size() -> None:
    """mm_hidden_size of the published X4 and X5; the maps are the shapes of what X5's networks give."""
    keys = [key for key in EAGLE if key != "dinov2"]
    x4, x5 = (Mixture.parse({"experts": EAGLE, "use": use}) for use in ([k for k in keys if k != "sam"], keys))
    assert [sum(shape.channels for shape in spec.maps) for spec in (x4, x5)] == [6656, 7680]
    assert [shape.grid for shape in x5.maps] == [(24, 24), (32, 32), (32, 32), (64, 64), (45, 45)]
    with torch.device("meta"):
        model = x5.build(BuildContext(torch.bfloat16)).requires_grad_(False)
        features = model(torch.empty(1, 3, 1024, 1024, dtype=torch.uint8))
    assert [tuple(f.values.shape) for f in features] == [(s.rows * s.columns, s.channels) for s in x5.maps]
    assert {key: sum(p.numel() for p in expert.parameters()) for key, expert in model.experts.items()} == x5.parts
