"""Deformable attention against loops in double precision, and the Triton twin against the reference."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megavlm.kernels.deformable_attention import deformable_attention

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(3, 4), (2, 2), (1, 5)]
Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def case(
    shapes: list[tuple[int, int]] = SHAPES, n: int = 2, queries: int = 2, heads: int = 2, points: int = 2, d: int = 3,
    spread: float = 0.6, device: str = "cpu", dtype: torch.dtype = torch.float64,
) -> Case:  # fmt: skip
    """Random values, weights, and locations of which about a third lie outside."""
    rng = torch.Generator().manual_seed(n + queries + points)
    many, exact = (n, queries, heads, len(shapes), points), torch.promote_types(dtype, torch.float32)
    values = torch.randn(n, sum(h * w for h, w in shapes), heads, d, generator=rng, dtype=torch.float64)
    locations = 0.5 + spread * torch.randn(*many, 2, generator=rng, dtype=torch.float64)
    weights = torch.rand(many, generator=rng, dtype=torch.float64)
    placed = values.to(device, dtype), locations.to(device, exact), weights.to(device, exact)
    return tuple(each.requires_grad_() for each in placed)


def at(level: list, x: float, y: float) -> float:
    """Bilinear between the centres (column + 0.5, row + 0.5), each cell's share a product of two tents; else zero."""
    total = 0.0
    for row, line in enumerate(level):
        for column, value in enumerate(line):
            total += max(0.0, 1 - abs(x - column - 0.5)) * max(0.0, 1 - abs(y - row - 0.5)) * value
    return total


def by_loops(values: torch.Tensor, shapes: list[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor):
    n, queries, heads, _, points, _ = locations.shape
    d = values.shape[3]
    out = torch.zeros(n, queries, heads, d, dtype=torch.float64)
    for i in range(n):
        for h in range(heads):
            start = 0
            for level, (rows, columns) in enumerate(shapes):
                cells = values[i, start : start + rows * columns, h].view(rows, columns, d)
                start += rows * columns
                channels = [cells[..., c].tolist() for c in range(d)]
                for q in range(queries):
                    for p in range(points):
                        x, y = locations[i, q, h, level, p].tolist()
                        share = weights[i, q, h, level, p].item()
                        for c in range(d):
                            out[i, q, h, c] += share * at(channels[c], x * columns, y * rows)
    return out.flatten(2)


def test_equals_loops_inside_and_outside() -> None:
    values, locations, weights = (each.detach() for each in case())
    assert ((locations < 0) | (locations > 1)).any(dim=-1).sum() > 5
    wanted = by_loops(values, SHAPES, locations, weights)
    torch.testing.assert_close(deformable_attention(values, SHAPES, locations, weights), wanted, rtol=1e-12, atol=1e-12)


def test_single_precision_equals_loops() -> None:
    values, locations, weights = (each.detach() for each in case(dtype=torch.float32))
    found = deformable_attention(values, SHAPES, locations, weights)
    wanted = by_loops(values.double(), SHAPES, locations.double(), weights.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_centres_corners_and_far_away(triton_device: str, backend: str) -> None:
    """One map of 2 x 4 cells worth 1..8: where a point stands tells what it reads."""
    values = torch.arange(1.0, 9.0, device=triton_device).view(1, 8, 1, 1)
    reads = {
        (0.125, 0.25): 1.0,  # a centre
        (0.875, 0.75): 8.0,
        (0.25, 0.25): 1.5,  # between two centres
        (0.5, 0.5): 4.5,  # between four
        (0.0, 0.25): 0.5,  # on the edge: half of it lies outside
        (0.0, 0.0): 0.25,
        (1.0, 1.0): 2.0,
        (-0.125, 0.25): 0.0,  # the centre of a cell that is not there
        (1.125, 0.25): 0.0,
        (0.125, -0.25): 0.0,
        (-1e30, 0.25): 0.0,
        (0.125, 1e30): 0.0,
    }
    locations = torch.tensor(list(reads), device=triton_device).view(1, len(reads), 1, 1, 1, 2)
    weights = torch.ones(locations.shape[:-1], device=triton_device)
    found = deformable_attention(values, [(2, 4)], locations, weights, backend=backend)
    assert found.flatten().tolist() == list(reads.values())


def test_gradients_against_finite_differences() -> None:
    """Of the reference; the Triton twin equals it in float64, and takes a hundred times as long in the interpreter."""
    shapes = [(2, 3), (1, 2)]
    inputs = case(shapes, queries=4)
    assert torch.autograd.gradcheck(lambda v, at, w: deformable_attention(v, shapes, at, w), inputs)


def outcome(shapes: list[tuple[int, int]], inputs: Case, backend: str) -> list[torch.Tensor]:
    """The result, and the gradients of all inputs for one push."""
    out = deformable_attention(inputs[0], shapes, *inputs[1:], backend=backend)
    push = torch.arange(out.numel(), device=out.device, dtype=torch.float64).cos().view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, push)]


MANY = {"n": 1, "queries": 17, "d": 4, "heads": 1}  # more queries than one program takes


@pytest.mark.parametrize(
    ("shapes", "sizes", "dtype", "tolerance"),
    [
        (SHAPES, {"points": 1}, torch.float64, 1e-12),
        ([(1, 1)], {"points": 3, "d": 1}, torch.float64, 1e-12),
        ([(3, 3)], MANY, torch.float32, 2e-5),
        ([(3, 3)], MANY, torch.bfloat16, 2e-2),
    ],
)
def test_triton_twin_equals_the_reference(
    triton_device: str, shapes: list[tuple[int, int]], sizes: dict[str, int], dtype: torch.dtype, tolerance: float
) -> None:
    inputs = case(shapes, device=triton_device, dtype=dtype, **sizes)
    for wanted, found in zip(outcome(shapes, inputs, "torch"), outcome(shapes, inputs, "triton"), strict=True):
        assert wanted.dtype == found.dtype
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_where_a_point_stands_on_a_border(triton_device: str, backend: str) -> None:
    """On the left edge half of cell 0 is read: its slope to the right is the cell over the width of a cell."""
    values = torch.tensor([3.0, 5.0], device=triton_device).view(1, 2, 1, 1).requires_grad_()
    locations = torch.tensor([0.0, 0.5], device=triton_device).view(1, 1, 1, 1, 1, 2).requires_grad_()
    weights = torch.full((1, 1, 1, 1, 1), 2.0, device=triton_device, requires_grad=True)
    deformable_attention(values, [(1, 2)], locations, weights, backend=backend).sum().backward()
    assert values.grad.flatten().tolist() == [1.0, 0.0]
    assert weights.grad.item() == 1.5
    assert locations.grad.flatten()[0].item() == 2.0 * 3.0 * 2
    # y = 0.5 is the centre of the only row: towards higher y the cell fades to nothing
    assert locations.grad.flatten()[1].item() == -2.0 * 1.5


def test_far_points_have_no_gradient(triton_device: str) -> None:
    for backend in ("torch", "triton"):
        values, _, weights = case([(2, 2)], queries=1, points=1, device=triton_device)
        locations = torch.full((2, 1, 2, 1, 1, 2), 7.0, device=triton_device, dtype=torch.float64, requires_grad=True)
        assert not any(each.any() for each in outcome([(2, 2)], (values, locations, weights), backend))


def test_the_triton_twin_repeats_exactly(triton_device: str) -> None:
    """Many queries read few cells: sums by atomics would differ from run to run."""
    torch.use_deterministic_algorithms(True)
    try:
        inputs = case([(1, 2)], n=1, queries=20, device=triton_device, dtype=torch.float32)
        runs = [outcome([(1, 2)], inputs, "triton") for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for again in runs[1:] for a, b in zip(again, runs[0], strict=True))


def test_no_queries_and_no_images(triton_device: str) -> None:
    for backend in ("torch", "triton"):
        for sizes in ({"queries": 0}, {"n": 0}):
            inputs = case([(2, 2)], device=triton_device, **sizes)
            out, *grads = outcome([(2, 2)], inputs, backend)
            assert out.numel() == 0 and [g.shape for g in grads] == [i.shape for i in inputs]
            assert not any(g.any() for g in grads)


def test_only_the_gradients_that_are_wanted(triton_device: str) -> None:
    values, locations, weights = case([(2, 2)], n=1, device=triton_device)
    wanted = outcome([(2, 2)], (values, locations, weights), "torch")
    out = deformable_attention(values.detach(), [(2, 2)], locations, weights.detach(), backend="triton")
    push = torch.arange(out.numel(), device=out.device, dtype=torch.float64).cos().view_as(out)
    torch.testing.assert_close(torch.autograd.grad(out, locations, push)[0], wanted[2])


def test_the_triton_twin_compiles_for_hopper(triton_device: str, tmp_path: Path) -> None:
    """The interpreter takes any Python, the compiler does not; it needs no GPU."""
    chosen = {"PYTHONPATH": str(ROOT / "src"), "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    worker = Path(__file__).with_name("compile_deformable.py")
    done = subprocess.run(
        [sys.executable, worker, "bf16"], env=os.environ | chosen, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["forward", "points_grad", "corners", "values_grad"]


def test_what_does_not_fit_is_refused() -> None:
    values, locations, weights = case()
    for bad in (
        (values, SHAPES[:2], locations, weights),
        (values, [(4, 3), (2, 2), (1, 6)], locations, weights),
        (values[:1], SHAPES, locations, weights),
        (values, SHAPES, locations[..., :1], weights),
        (values, SHAPES, locations, weights[..., :1]),
        (values, SHAPES, locations.float(), weights),
        (values.float(), SHAPES, locations, weights),
        (values.long(), SHAPES, locations.float(), weights.float()),
    ):
        with pytest.raises(ValueError):
            deformable_attention(*bad)
    assert math.isfinite(deformable_attention(values, SHAPES, locations, weights).sum().item())
