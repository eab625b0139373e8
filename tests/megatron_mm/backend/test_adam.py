"""CpuFusedAdam against torch's own optimizers."""

from __future__ import annotations

import copy

import pytest
import torch

from megavlm.megatron_mm.backend.adam import CpuFusedAdam


def descend(kind: type, steps: int = 6, **options: object) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    draw = torch.Generator().manual_seed(3)
    params = [torch.randn(shape, generator=draw).requires_grad_() for shape in ((4, 5), (7,), (2, 3, 2))]
    optimizer = kind(params, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, **options)
    for _ in range(steps):
        for p in params[:2]:  # the last one never gets a gradient
            p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()
    return [p.detach() for p in params], optimizer


@pytest.mark.parametrize(("decoupled", "reference"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
def test_equals_torch(decoupled: bool, reference: type) -> None:
    ours, _ = descend(CpuFusedAdam, adam_w_mode=decoupled)
    torch.testing.assert_close(ours, descend(reference)[0], rtol=0, atol=1e-6)


def test_state_is_what_fused_adam_keeps() -> None:
    params, optimizer = descend(CpuFusedAdam, steps=2)
    assert [set(state) for state in optimizer.state.values()] == [{"exp_avg", "exp_avg_sq"}] * 2
    assert optimizer.param_groups[0]["step"] == 2


def test_resumes_where_it_stopped() -> None:
    weights, interrupted = descend(CpuFusedAdam, steps=3)
    resumed = CpuFusedAdam([w.clone().requires_grad_() for w in weights], lr=1.0)
    resumed.load_state_dict(copy.deepcopy(interrupted.state_dict()))
    for optimizer in (interrupted, resumed):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.full_like(p, 0.3)
        optimizer.step()
    for a, b in zip(interrupted.param_groups[0]["params"], resumed.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)
