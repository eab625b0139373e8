"""merge_tokens against a loop, its gradients against finite differences, and the Triton twin against the reference."""

from __future__ import annotations

import pytest
import torch

from megavlm.kernels.merge_tokens import merge_tokens


def case(
    rows: int, width: int, count: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(rows + width)
    text = torch.randn(rows, width, generator=rng).to(device, dtype).requires_grad_()
    visual = torch.randn(count, width, generator=rng).to(device, dtype).requires_grad_()
    return [text, visual, torch.randperm(rows, generator=rng)[:count].to(device)]


@pytest.mark.parametrize("count", [0, 1, 5, 9])
def test_equals_a_loop_and_leaves_the_text_alone(count: int) -> None:
    text, visual, index = case(9, 4, count)
    before, wanted = text.detach().clone(), text.detach().clone()
    for i, row in enumerate(index.tolist()):
        wanted[row] = visual[i].detach()
    assert torch.equal(merge_tokens(text, visual, index), wanted)
    assert torch.equal(text, before)


def test_gradients_against_finite_differences() -> None:
    text, visual, index = case(6, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t, v: merge_tokens(t, v, index), (text, visual))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width", "count"), [(7, 16, 3), (5, 1300, 5), (4, 8, 0)])
def test_triton_twin_equals_the_reference(
    triton_device: str, rows: int, width: int, count: int, dtype: torch.dtype
) -> None:
    results = []
    for backend in ("torch", "triton"):
        text, visual, index = case(rows, width, count, triton_device, dtype)
        out = merge_tokens(text, visual, index, backend=backend)
        weights = torch.arange(out.numel(), device=out.device, dtype=dtype).reshape(out.shape).cos()
        (out * weights).sum().backward()
        results.append((out.detach(), text.grad, visual.grad))
    for wanted, found in zip(*results, strict=True):
        assert torch.equal(wanted, found)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_backward_pass_repeats_exactly(triton_device: str, backend: str) -> None:
    """Bit by bit, and by nothing that torch knows to depend on chance: on a GPU it would raise."""
    weights, grads = torch.randn(33, 96, device=triton_device), []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            text, visual, index = case(33, 96, 20, triton_device)
            (merge_tokens(text, visual, index, backend=backend) * weights).sum().backward()
            grads.append((text.grad, visual.grad))
    finally:
        torch.use_deterministic_algorithms(False)
    for again in grads[1:]:
        assert torch.equal(again[0], grads[0][0]) and torch.equal(again[1], grads[0][1])
    assert torch.equal(visual.grad, weights[index]) and not text.grad[index].any()


def test_triton_twin_reads_expanded_gradients_and_strided_rows(triton_device: str) -> None:
    wide = torch.randn(6, 8, device=triton_device)
    text = wide[:, 2:6].detach().requires_grad_()
    visual = torch.ones(2, 4, device=triton_device, requires_grad=True)
    index = torch.tensor([4, 1], device=triton_device)
    out = merge_tokens(text, visual, index, backend="triton")
    assert torch.equal(out, merge_tokens(text, visual, index, backend="torch"))
    out.sum().backward()  # its gradient is one number, expanded
    assert torch.equal(visual.grad, torch.ones_like(visual))
    assert text.grad.sum(dim=1).tolist() == [4.0, 0.0, 4.0, 4.0, 0.0, 4.0]


def test_what_does_not_fit_is_refused() -> None:
    text, visual, index = case(6, 3, 2)
    for bad in (
        (text, visual[:, :2], index),
        (text, visual, index[:1]),
        (text, visual, index.int()),
        (text, visual.half(), index),
    ):
        with pytest.raises(ValueError):
            merge_tokens(*bad)
    with pytest.raises((IndexError, RuntimeError)):
        merge_tokens(text, visual, torch.tensor([0, 6]))
