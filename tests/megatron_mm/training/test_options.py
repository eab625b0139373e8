"""What a recipe may say of rates and decay, axis by axis: reaches the optimizer, and survives a checkpoint."""

from __future__ import annotations

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import latest
from megavlm.megatron_mm.config import Checkpoint, Optimizer, Parallel
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training import checkpoint
from megavlm.megatron_mm.training.schedule import learning_rate
from megavlm.megatron_mm.training.step import cut, train_step
from megavlm.megatron_mm.training.wrapping import GROUP, make_optimizer, set_rate, wrap
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder

OPTIONS = {
    "lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 2, "weight_decay": 0.1, "betas": [0.9, 0.99],
    "groups": {"encoder": {"lr": 2e-4}, "connector": {"lr": 2e-4, "weight_decay": 0.03}},
}  # fmt: skip


def test_warm_up_stable_decay() -> None:
    options = Optimizer(lr=1.0, min_lr=0.2, warmup_steps=2, schedule="wsd", decay_steps=4)
    found = [learning_rate(step, options, 10) for step in range(10)]
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("wrong", [{"schedule": "wsd"}, {"decay_steps": 3}])
def test_decay_steps_belong_to_wsd(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="decay_steps"):
        Optimizer.parse({"lr": 1.0, **wrong})


def test_an_axis_of_its_own() -> None:
    options = Optimizer.parse(OPTIONS)
    assert options.of("encoder") == pytest.approx((2e-4, 2e-5, 0.1))
    assert options.of("connector") == pytest.approx((2e-4, 2e-5, 0.03))
    assert options.of("decoder") == options.of(None) == (1e-3, 1e-4, 0.1)
    with pytest.raises(ConfigError):
        Optimizer.parse(OPTIONS | {"groups": {"encodr": {"lr": 1}}})


def groups(optimizer) -> dict[tuple, dict]:
    return {(group.get(GROUP), group["wd_mult"]): group for group in optimizer.param_groups if group["params"]}


def test_the_optimizer_has_them_before_and_after_a_checkpoint(one_process, tiny_model, tiny_pack, tmp_path) -> None:
    parallel, options = Parallel(), Optimizer.parse(OPTIONS)

    def made():
        config = tiny_model()
        model = build_model(config, backend.build_context(parallel))
        backend.initialise(model, seed=1)
        wrapped = wrap(model)
        optimizer = make_optimizer(wrapped, options)
        train_step(wrapped, optimizer, cut([[tiny_pack()]], wrapped), config.objectives[0].build())
        set_rate(optimizer, options, step=2, steps=10)
        return model, optimizer

    model, optimizer = made()
    before = groups(optimizer)
    assert set(before) == {(axis, mult) for axis in ("encoder", "connector", None) for mult in (0.0, 1.0)}
    for (axis, mult), group in before.items():
        assert group["lr"] == pytest.approx(2e-4 if axis else 1e-3)
        assert group["weight_decay"] == pytest.approx(mult * {"connector": 0.03}.get(axis, 0.1))
    counted = {axis: sum(p.numel() for p in before[axis, 1.0]["params"]) for axis in ("encoder", "connector")}
    for axis, count in counted.items():
        assert count == sum(p.numel() for _, p in model.axis(axis) if p.dim() > 1)
    run = RunFolder.create(tmp_path / "run", {}, {}, [])
    checkpoint.Saver(run, "s", Checkpoint()).save(2, model, optimizer)
    model, optimizer = made()
    checkpoint.load(latest(run, "s"), model, optimizer)
    after = groups(optimizer)
    for key, group in before.items():
        assert {name: after[key][name] for name in ("lr", "weight_decay", "betas")} == {
            name: group[name] for name in ("lr", "weight_decay", "betas")
        }, key
    assert all(torch.isfinite(p).all() for p in model.parameters())
