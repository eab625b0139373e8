"""LLaVA-HR's adapter against the published modules' arithmetic, in double precision over a dict of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expert_checks import HERE, Weights, gelu, inside, linear, norm, random_tiles
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.clip import Clip
from megavlm.megatron_mm.encoders.convnext import ConvNeXt
from megavlm.megatron_mm.encoders.llava_hr import LlavaHr
from megavlm.megatron_mm.maps import MapShape
from megavlm.platform.errors import ConfigError

SIDE, LAYERS, HEADS = 96, 4, 4
LOW = {"name": "clip", "image_size": 42, "patch_size": 7, "layers": LAYERS, "hidden": 32, "heads": HEADS, "ffn": 48}
LOW |= {"layer": -1, "class_token": "dropped"}
HIGH = {"name": "convnext", "image_size": 192, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 24]}
CASES: dict[str, dict[str, Any]] = {
    "one grid": {},
    "a smaller high map": {"high": {**HIGH, "image_size": SIDE}},
    "a larger high map": {"high": {**HIGH, "image_size": 384}},
    "with a class token": {"low": {**LOW, "class_token": "in_layers"}},
    "other widths": {"high_hidden": 20, "gate_hidden": 6, "kernel": 3, "after": [2]},
    "frozen encoders": {"after": []},
}


def spec_of(case: str = "one grid", **options: Any) -> LlavaHr:
    return LlavaHr.parse({"image_size": SIDE, "low": LOW, "high": HIGH, "after": [1, 3]} | CASES[case] | options)


def tiles(n: int = 2) -> Tensor:
    return random_tiles(n, SIDE)


def built(spec: Any, ctx: BuildContext = HERE) -> Any:
    """With random weights: nothing stays at the zero it begins with."""
    model = spec.build(ctx)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=draw))
    return model


def statement(model: Any, spec: LlavaHr) -> Tensor:
    """[n, rows * columns, hidden] in float64, from the weights by name; the high map is that of a ConvNeXt alone."""
    w = {name: p.detach().double() for name, p in model.named_parameters()}
    high_net = ConvNeXt.parse(spec.high.model_dump()).build(HERE)
    high_net.load_state_dict(model.high.state_dict())
    high = high_net(image(spec.high.image_size))[-1].tiles.detach().double().movedim(-1, 1)  # [n, c, r, r]
    x = embedded(w, spec)
    first = x.shape[1] - 36
    for i in range(LAYERS):
        x = block(inside(w, f"low.vision_model.encoder.layers.{i}."), x)
        if i + 1 in spec.after:
            p = inside(w, f"adapter.align_stages_latent.{spec.after.index(i + 1)}.")
            x = torch.cat([x[:, :first], aligned(p, x[:, first:], high)], dim=1)
    p = inside(w, "adapter.align_stages.0.")
    slow = at_six(high).flatten(2).transpose(1, 2)
    return linear(p, "fast_proj", x[:, first:]) + linear(p, "slow_proj", slow)


def image(side: int) -> Tensor:
    return F.interpolate(tiles().float(), size=(side, side), mode="bilinear", align_corners=True)


def embedded(w: Weights, spec: LlavaHr) -> Tensor:
    """Patches, positions, norm: those of CLIP's own forward pass with no layer."""
    none = Clip.parse({**spec.low.model_dump(), "layer": 0, "class_token": "in_layers"}).build(HERE)
    names = inside(w, "low.")
    names.setdefault("vision_model.embeddings.class_embedding", torch.zeros(32))
    none.load_state_dict({k: t for k, t in names.items() if ".layers." not in k})
    x = none(image(42))[0].tiles.detach().double().flatten(1, 2)
    if spec.low.class_token == "dropped":
        return x
    token = (
        names["vision_model.embeddings.class_embedding"] + names["vision_model.embeddings.position_embedding.weight"][0]
    )
    p = inside(names, "vision_model.")
    return torch.cat([norm(p, "pre_layrnorm", token, 1e-5).expand(len(x), 1, -1), x], dim=1)


def block(p: Weights, x: Tensor) -> Tensor:
    """A layer of CLIP's ViT."""
    y = norm(p, "layer_norm1", x, 1e-5)
    q, k, v = (linear(p, f"self_attn.{name}_proj", y).unflatten(-1, (HEADS, -1)) for name in "qkv")
    seen = (torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    x = x + linear(p, "self_attn.out_proj", torch.einsum("nhqk,nkhd->nqhd", seen, v).flatten(2))
    y = linear(p, "mlp.fc1", norm(p, "layer_norm2", x, 1e-5))
    return x + linear(p, "mlp.fc2", y * torch.sigmoid(1.702 * y))


def at_six(x: Tensor) -> Tensor:
    """[n, c, r, r] at the ViT's 6 x 6: means of blocks, or straight lines between cells whose corners are common."""
    side = x.shape[-1]
    if side >= 6:
        return x.unflatten(3, (6, side // 6)).unflatten(2, (6, side // 6)).mean((3, 5))
    at = torch.arange(6, dtype=torch.float64) * (side - 1) / 5
    weights = (1 - (at[:, None] - torch.arange(side)).abs()).clamp(min=0)  # [6, side], tents
    return torch.einsum("yr,xc,nkrc->nkyx", weights, weights, x)


def aligned(p: Weights, fast: Tensor, high: Tensor) -> Tensor:
    """S2FStitchAlignModuleV2, convolution by convolution."""
    slow = torch.einsum("oi,nirc->norc", p["slow_conv.weight"][:, :, 0, 0], high) + p["slow_conv.bias"].view(-1, 1, 1)
    slow = torch.einsum("oi,nirc->norc", p["slow_proj.weight"][:, :, 0, 0], gelu(slow))
    slow = at_six(slow + p["slow_proj.bias"].view(-1, 1, 1)).flatten(2).transpose(1, 2)
    grid = fast.transpose(1, 2).unflatten(2, (6, 6))
    reach = p["fast_conv.weight"].shape[-1] // 2
    padded = F.pad(grid, (reach,) * 4)
    around = p["fast_conv.bias"].view(-1, 1, 1).expand_as(grid)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            around = (
                around + p["fast_conv.weight"][:, 0, dy, dx].view(-1, 1, 1) * padded[:, :, dy : dy + 6, dx : dx + 6]
            )
    mixed = torch.einsum("oi,nirc->norc", p["fast_proj.weight"][:, :, 0, 0], gelu(around))
    fast = (grid + mixed + p["fast_proj.bias"].view(-1, 1, 1)).flatten(2).transpose(1, 2)
    means = torch.cat([fast, slow], dim=-1).mean(1)
    gate = linear(p, "gate.2", gelu(linear(p, "gate.0", means))).tanh()
    return fast + slow * gate[:, None]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_published_arithmetic(case: str) -> None:
    spec = spec_of(case)
    model = built(spec)
    (feature,) = model(tiles())
    assert spec.maps == (MapShape("llava_hr", -1, 6, 6, 32),)
    assert (feature.expert, feature.layer, feature.grid) == ("llava_hr", -1, (6, 6))
    assert feature.images.tolist() == [0, 1]
    wanted = statement(model, spec).flatten(0, 1)
    assert wanted.std() > 0.1
    torch.testing.assert_close(feature.values.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_counts(case: str) -> None:
    spec = spec_of(case)
    model = built(spec)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts == dict(spec.parts) and spec.parameters() == sum(parts.values())
    with FlopCounterMode(display=False) as counter:
        model.adapter.merge(*_maps(spec))
        for number in spec.after:
            model.adapter.align(number, *_maps(spec))
    adapter = spec.flops().forward - spec.low.flops().forward - spec.high.flops().forward
    assert counter.get_total_flops() == pytest.approx(2 * adapter)


def _maps(spec: LlavaHr) -> list[Tensor]:
    shapes = (spec.low.maps[0], spec.high.maps[-1])
    return [torch.zeros(2, shape.rows * shape.columns, shape.channels) for shape in shapes]


def test_full_size_is_the_papers() -> None:
    """Eagle's Table 4: CLIP + ConvNeXt with LLaVA-HR's adapter and an MLP 1024 -> 4096 -> 4096 have 1219 M."""
    spec = LlavaHr()
    with torch.device("meta"):
        model = spec.build(BuildContext(torch.bfloat16)).requires_grad_(False)
        (feature,) = model(torch.empty(2, 3, 1024, 1024, dtype=torch.uint8))
    assert (feature.tiles.shape, feature.values.dtype) == ((2, 32, 32, 1024), torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == spec.parameters()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert spec.parts["adapter"] == 48_408_579
    unused_head = 3072 + 3072 + 3072 * 1024  # of the published ConvNeXt, which the paper's figure holds
    mlp = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert round((spec.parameters() + unused_head + mlp) / 1e6) == 1219
    assert spec.maps == (MapShape("llava_hr", -1, 32, 32, 1024),)


def test_begins_as_the_vit_alone(one_process: BuildContext) -> None:
    """The second convolutions start from zero: as if there were no adapters in between."""
    values = []
    for after in ([1, 3], []):
        model = spec_of(after=after).build(one_process)
        backend.initialise(model, seed=1)
        values.append(model(tiles())[0].values)
    assert torch.equal(*values) and values[0].std() > 0.1


def test_the_second_convolutions_begin_to_learn(one_process: BuildContext) -> None:
    """What stands before them has a gradient of zero in the first step."""
    model = spec_of().build(one_process)
    backend.initialise(model, seed=1)
    model(tiles())[0].values.square().sum().backward()
    learns = {name: bool(p.grad.any()) for name, p in model.adapter.align_stages_latent[0].named_parameters()}
    assert {name for name, does in learns.items() if does} == {
        f"{side}_proj.{kind}" for side in ("fast", "slow") for kind in ("weight", "bias")
    }


def test_recomputed_layers_give_the_same_gradients() -> None:
    grads, runs = [], []
    for recompute in ("none", "full"):
        model = built(spec_of(), BuildContext(torch.float32, recompute=recompute))
        for inner in (
            model.low.vision_model.encoder.layers[1].self_attn,
            model.adapter.align_stages_latent[1].slow_conv,
        ):
            inner.register_forward_hook(lambda *_, kind=recompute: runs.append(kind))
        model(tiles())[0].values.square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert runs == ["none"] * 2 + ["full"] * 4
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())
    assert all(grad.any() for name, grad in grads[0].items() if not name.endswith("k_proj.bias"))


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_adapter_learns_between_frozen_encoders(recompute: Any) -> None:
    whole, part = (built(spec_of(), BuildContext(torch.float32, recompute=recompute)) for _ in range(2))
    part.low.requires_grad_(False)
    part.high.requires_grad_(False)
    for model in (whole, part):
        model(tiles())[0].values.square().sum().backward()
    for (name, p), other in zip(part.named_parameters(), whole.parameters(), strict=True):
        if name.startswith("adapter."):
            torch.testing.assert_close(p.grad, other.grad)
        else:
            assert p.grad is None


def test_no_tiles() -> None:
    (feature,) = built(spec_of())(tiles(0))
    assert feature.tiles.shape == (0, 6, 6, 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low": HIGH}, "not a plain ViT"),
        ({"low": {**LOW, "layer": [1, 2]}}, "not a plain ViT with one feature map"),
        ({"after": [3, 1]}, "layers 1 to 4"),
        ({"after": [2, 2]}, "layers 1 to 4"),
        ({"after": [5]}, "layers 1 to 4"),
        ({"kernel": 4}, "has no centre"),
        ({"low": {**LOW, "layer": 5}}, r"where: encoder\.low\.layer"),
        ({"high": {**HIGH, "dim": 5}}, r"where: encoder\.high\.dim"),
        ({"high": {**HIGH, "image_size": 288}}, "no multiple"),
    ],
)
def test_impossible_shapes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        spec_of(**options)


def test_a_layout_that_splits_an_encoder_names_it() -> None:
    split = {"name": "internvit", "image_size": 84, "layers": 1, "hidden": 50, "heads": 25, "ffn": 64}
    spec = spec_of(high=split)
    with pytest.raises(ConfigError, match=r"^encoder\.high\.heads 25 .* parallel\.tp 2") as error:
        spec.check(Parallel(tp=2))
    assert error.value.fix == "set encoder.high.dummy_heads=1, or a tp that divides 25"
    assert [key for key, *_ in spec.fp8_widths(Parallel())] == ["high.hidden", "high.hidden", "high.ffn"]


def test_reads_what_it_wrote() -> None:
    assert LlavaHr.parse(spec_of().model_dump(mode="json")) == spec_of()
