"""How long things take on this device, and what they are held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def seconds(work: Callable[[], Any], repeats: int = 10, warm: int = 3) -> float:
    """Median seconds of one call, measured on the device's own clock where it has one."""
    for _ in range(warm):
        work()
    return statistics.median(_on_cuda(work) if CUDA else _on_cpu(work) for _ in range(repeats))


def _on_cuda(work: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _on_cpu(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ceilings(dry: bool) -> dict[str, Any]:
    """What this device reaches at best: bytes/s of a copy, bf16 FLOP/s of a square product; and what it is."""
    size, side = (2**20, 128) if dry else (2**33, 8192)
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE).random_(0, 255)
    target = torch.empty_like(source)
    copied = 2 * size / seconds(lambda: target.copy_(source))
    left, right = (torch.randn(side, side, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    multiplied = 2 * side**3 / seconds(lambda: left @ right)
    return {"bytes_per_second": copied, "bf16_flops": multiplied, **about()}


def about() -> dict[str, Any]:
    """The device and the versions that figures belong to."""
    found = {"torch": torch.__version__, "cuda": torch.version.cuda if CUDA else None}
    return found | {"device": torch.cuda.get_device_name() if CUDA else "cpu", "engine": engine_version()}


def engine_version() -> str | None:
    """Transformer Engine's version; None where its layers cannot run."""
    if not CUDA:
        return None
    try:
        import transformer_engine
    except ImportError:
        return None
    return transformer_engine.__version__


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a reference; without its code generation on the CPU, where no figure counts."""
    return torch.compile(function, backend="inductor" if CUDA else "eager", dynamic=False)


def forward_backward(function: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> Callable[[], None]:
    """One call with its gradients to `inputs`."""
    push = torch.randn_like(function())

    def work() -> None:
        torch.autograd.grad(function(), inputs, push)

    return work
