"""How fast a node computes, and how fast nodes sum up tensors together; imported by the full check only, for torch.

One process per node goes through its GPUs one after another; without any, the CPU and gloo take their place.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from .meeting import Message

SECONDS = 0.3  # of measuring, each time
JOIN_SECONDS = 60.0  # NCCL takes long to set up a communicator over thousands of nodes
MATMUL = {"cuda": (8192, torch.bfloat16), "cpu": (384, torch.float32)}
ALL_REDUCE_BYTES = {"cuda": 1 << 30, "cpu": 8 << 20}  # at most
FIRST_BYTES, LONG_ENOUGH = 1 << 20, 0.02  # bytes of the first try; seconds that one all-reduce should take


def devices() -> list[torch.device]:
    """The GPUs of this node, or its CPU."""
    count = torch.cuda.device_count()
    return [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]


def matmul() -> float:
    """Floating-point operations per second of the slowest GPU: square matrices, bf16 (fp32 on the CPU)."""
    return min(_matmul(device) for device in devices())


def _matmul(device: torch.device) -> float:
    size, dtype = MATMUL[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)

    def work() -> None:
        torch.mm(left, right, out=out)

    _timed(work, 1, device)
    times = max(1, int(SECONDS / 3 / _timed(work, 1, device)))
    return 2 * size**3 * times / min(_timed(work, times, device) for _ in range(3))


def all_reduce(request: Message) -> Message:
    """{"rank", "size", "key", "store": [address, port], "device"} -> {"rate": bytes of bus bandwidth per second}.

    Bus bandwidth as nccl-tests define it, 2 (n - 1) / n x bytes / seconds: comparable whatever the number of nodes.
    """
    address, port = request["store"]
    patience = timedelta(seconds=JOIN_SECONDS)
    store = dist.PrefixStore(request["key"], dist.TCPStore(address, port, is_master=False, timeout=patience))
    device = devices()[request["device"]]
    how = {"backend": "nccl", "device_id": device} if device.type == "cuda" else {"backend": "gloo"}
    dist.init_process_group(store=store, rank=request["rank"], world_size=request["size"], timeout=patience, **how)
    try:
        return {"rate": _bus_bandwidth(device, request["size"])}
    finally:
        dist.destroy_process_group()


def host_store(address: str) -> dist.TCPStore:
    """Where the members of groups look each other up; listens on a free port for as long as it is kept."""
    return dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)


def _bus_bandwidth(device: torch.device, size: int) -> float:
    """All members go through the same sizes and numbers: what to do next follows from the slowest one's time."""
    most = ALL_REDUCE_BYTES[device.type]
    values = torch.ones(FIRST_BYTES // 4, device=device)
    _agreed(_timed(lambda: dist.all_reduce(values), 1, device), device)  # the first sets connections up
    took = _agreed(_timed(lambda: dist.all_reduce(values), 1, device), device)
    bytes_ = min(most, FIRST_BYTES * max(1, int(LONG_ENOUGH / took)))
    values = torch.ones(bytes_ // 4, device=device)
    took = _agreed(_timed(lambda: dist.all_reduce(values), 1, device), device)
    times = max(1, int(SECONDS / took))
    took = _agreed(_timed(lambda: dist.all_reduce(values), times, device), device) / times
    return 2 * (size - 1) / size * bytes_ / took


def _agreed(seconds: float, device: torch.device) -> float:
    longest = torch.tensor(seconds, device=device, dtype=torch.float64)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return float(longest)


def _timed(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of doing it so many times."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return max(time.perf_counter() - start, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
