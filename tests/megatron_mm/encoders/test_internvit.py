"""InternViT on megatron-core against the published layers written out in plain torch (encoder_worker.py)."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.internvit import InternViT
from megavlm.megatron_mm.encoders.internvit_model import InternViTModel
from megavlm.platform.errors import ConfigError

SPEC = InternViT(image_size=28, patch_size=7, layers=2, hidden=32, heads=4, ffn=64)
CASES = ["6B", "6B with dummy heads", "300M", "other positions"]
SMALL_300M = {"layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096, "norm": "layer", "qk_norm": False}


def filled(worker: ModuleType, case: str, ctx: BuildContext) -> InternViTModel:
    spec = InternViT(**worker.CASES[case])
    model = spec.build(ctx)
    worker.fill(model, worker.in_our_layout(worker.published(case), spec))
    return model


@pytest.mark.parametrize("case", CASES)
def test_equals_the_published_layers(worker: ModuleType, one_process: BuildContext, case: str) -> None:
    (feature,) = filled(worker, case, one_process)(worker.tiles())
    assert (feature.grid, feature.layer, feature.images.tolist()) == ((4, 4), -1, [0, 1, 2])
    wanted = worker.statement(worker.published(case), worker.tiles(), InternViT(**worker.CASES[case]).heads)
    torch.testing.assert_close(feature.values, wanted.flatten(0, 1).float(), rtol=1e-5, atol=1e-5)


def test_dummy_heads_change_nothing(worker: ModuleType, one_process: BuildContext) -> None:
    (with_them,) = filled(worker, "6B with dummy heads", one_process)(worker.tiles())
    (without,) = filled(worker, "6B", one_process)(worker.tiles())
    torch.testing.assert_close(with_them.values, without.values, rtol=1e-6, atol=1e-6)


def padding(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What dummy heads hold: the last 7 of 32 heads' rows of qkv (q, k, v of each), columns of proj, norm weights."""
    real = 25 * 2
    ends = {
        "linear_qkv.weight": (0, 3 * real),
        "linear_proj.weight": (1, real),
        "q_norm.weight": (0, real),
        "k_norm.weight": (0, real),
    }
    found = [(t, *ends[end]) for name, t in tensors.items() for end in ends if name.endswith(end)]
    return [t.narrow(axis, start, t.shape[axis] - start) for t, axis, start in found]


@pytest.mark.parametrize("drawn", [False, True], ids=["published", "drawn"])
def test_dummy_heads_stay_zero_in_training(worker: ModuleType, one_process: BuildContext, drawn: bool) -> None:
    """Their gradients are 0, while every real weight has one."""
    model = filled(worker, "6B with dummy heads", one_process)
    if drawn:
        backend.initialise(model, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        (feature,) = model(worker.tiles())
        optimizer.zero_grad()
        (feature.values**2).sum().backward()
        optimizer.step()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert len(padding(grads)) == 8 and all(grad.any() for grad in grads.values())
    for values in [*padding(grads), *padding(dict(model.named_parameters()))]:
        assert len(values) and not values.any()


def test_dummy_heads_change_no_first_weight(worker: ModuleType, one_process: BuildContext) -> None:
    drawn = {}
    for case in ("6B", "6B with dummy heads"):
        model = InternViT(**worker.CASES[case]).build(one_process)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(float("nan"))
        backend.initialise(model, seed=1)
        drawn[case] = dict(model.named_parameters())
    assert not any(values.any() for values in padding(drawn["6B with dummy heads"]))
    for name, p in drawn["6B"].items():
        wider = drawn["6B with dummy heads"][name]
        assert torch.equal(wider[tuple(slice(size) for size in p.shape)], p), name


def test_a_norm_reads_the_real_heads_only(worker: ModuleType, one_process: BuildContext) -> None:
    """What a dummy head would hold, were it not zero, is no part of the mean: a checkpoint may say so."""
    model = filled(worker, "6B with dummy heads", one_process)
    norm = model.block.layers[0].self_attention.q_norm
    x = torch.randn(3, 2, 32, 2, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, :, 25:] += 5
    assert torch.equal(norm(x), norm(changed)) and (norm(x)[:, :, :25] != 0).all()


def test_sees_in_both_directions_and_only_its_tile(worker: ModuleType, one_process: BuildContext) -> None:
    """The last patch reaches the first; another tile reaches nothing."""
    pixels = worker.tiles().float().requires_grad_()
    (feature,) = filled(worker, "6B", one_process)(pixels)
    feature.tiles[1, 0, 0].sum().backward()
    assert pixels.grad[1, :, -7:, -7:].abs().sum() > 0
    assert pixels.grad[0].abs().sum() == 0 and pixels.grad[2].abs().sum() == 0


def test_layer_scale_starts_at_its_key(one_process: BuildContext) -> None:
    model = SPEC.model_copy(update={"layer_scale": 0.25}).build(one_process)
    backend.initialise(model, seed=1)
    assert model.block.layers[1].mlp_bda.scale.tolist() == [0.25] * 32


@pytest.mark.parametrize(
    ("spec", "stated"),
    [
        (SPEC, None),
        (SPEC.model_copy(update={"dummy_heads": 3, "qkv_bias": True, "norm": "layer"}), None),
        (InternViT(image_size=56, layers=3, hidden=128, heads=4, ffn=256, trained_size=28), None),
        (InternViT(), 5_536_496_000),
        (InternViT(dummy_heads=7), 6_052_672_640),  # what the released NVLM-D-72B's 79.38 B hold
        (InternViT(**SMALL_300M, qkv_bias=True), 304_012_288),
    ],
    ids=["tiny", "tiny with all", "mini", "6B", "6B with dummy heads", "300M"],
)
def test_parameters_are_counted_right(one_process: BuildContext, spec: InternViT, stated: int | None) -> None:
    with torch.device("meta"):
        built = sum(p.numel() for p in spec.build(one_process).parameters())
    assert spec.parameters() == built
    assert stated is None or built == stated


@pytest.mark.parametrize(("tp", "dummies"), [(2, 1), (4, 3), (8, 7), (32, 7)])
def test_heads_that_do_not_divide_are_refused_before_building(tp: int, dummies: int) -> None:
    """With the number of dummy heads that would do, which then does."""
    with pytest.raises(ConfigError, match=f"encoder.heads 25 .*parallel.tp {tp}") as error:
        InternViT().check(Parallel(tp=tp))
    assert f"set encoder.dummy_heads={dummies}" in str(error.value)
    InternViT(dummy_heads=dummies).check(Parallel(tp=tp))


@pytest.mark.parametrize("change", [{"patch_size": 15}, {"heads": 7}, {"trained_size": 225}])
def test_impossible_shapes(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        InternViT.parse({"name": "internvit", **change})
