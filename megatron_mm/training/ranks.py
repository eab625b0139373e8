"""What the ranks tell each other after a step, in one exchange: the wish to save, their pace, their memory."""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist

from megavlm.platform.processes import resident

from .. import backend

GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The same on every rank. slowness: the slowest rank's own time over the median of all (`OwnTime`)."""

    stop: bool
    slowest: int
    slowness: float
    memory: float  # the highest peak, GiB


def compare(wants_stop: bool, own_seconds: float) -> Ranks:
    """Ask and tell; every rank calls it once a step."""
    mine = torch.tensor([wants_stop, own_seconds, peak_memory()], dtype=torch.float64, device=backend.device())
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    stops, seconds, memory = torch.stack(found).cpu().T
    slowest, median = int(seconds.argmax()), float(seconds.quantile(0.5))
    slowness = float(seconds[slowest]) / median if median else 1.0
    return Ranks(bool(stops.any()), slowest, slowness, float(memory.max()))


def peak_memory() -> float:
    """GiB: what the allocator has held of the GPU at most, or this process of the machine's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / GIB
    return resident()[1] / GIB


def whole_memory() -> float | None:
    """GiB of this process' GPU; None on a CPU, where others share it."""
    return torch.cuda.mem_get_info()[1] / GIB if torch.cuda.is_available() else None


def device_name() -> str:
    """What this process computes on: the GPU's name, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
