"""What checkpoints cost a job, and how often to write them. Arithmetic: loads no torch."""

from __future__ import annotations

import dataclasses
import math

from megavlm.platform.checkpoint_size import checkpoint_bytes

from .contracts import Estimate

HOUR, GIGA = 3600.0, 1e9
# Of one GPU with its share of all else: 419 unexpected interruptions of 16,384 H100 in 54 days (Llama 3,
# arXiv 2407.21783, section 3.3.4).
MTBF_HOURS = 16_384 * 54 * 24 / 419
# Bytes/s that one machine writes to shared storage: 273 GB/s from 384 machines (arXiv 2104.04473, section 5.10).
STORAGE_RATE = 273e9 / 384
HOST_RATE = 20e9  # bytes/s from a GPU to its machine's memory; our guess: PCIe 4.0 x16 at two thirds of its peak


@dataclasses.dataclass(frozen=True)
class Saves:
    """A job's checkpoints. every: the interval in steps at which least time is lost to saves and failures together.

    size: bytes. writing: seconds until it is on disk. stall: of them those in which training stands. mtbf: seconds
    between failures of the whole job. lost: the part of the time that saves and repeated work take, restarts not
    counted.
    """

    size: int
    writing: float
    stall: float
    mtbf: float
    every: int
    lost: float


def saves(estimate: Estimate, asynchronous: bool, mtbf_hours: float, storage: float = STORAGE_RATE) -> Saves:
    """Of a job whose every GPU fails once in `mtbf_hours`, with `storage` bytes/s from each machine.

    Written asynchronously, training stands while each GPU copies its share to its machine's memory, and the next
    checkpoint waits until this one is on disk.
    """
    job = estimate.job
    size = checkpoint_bytes(estimate.parameters, estimate.trained, job.precision)
    writing = size / (storage * math.ceil(job.world / job.gpu.per_node))
    stall = size / job.world / HOST_RATE if asynchronous else writing
    mtbf = mtbf_hours * HOUR / job.world
    apart = max(best_interval(stall, mtbf), writing)
    every = max(round(apart / estimate.time.total), 1)
    return Saves(size, writing, stall, mtbf, every, lost_share(every * estimate.time.total, stall, mtbf))


def best_interval(stall: float, mtbf: float) -> float:
    """Seconds of work between two saves of `stall` seconds each: Daly, FGCS 22 (2006), equation 37.

    Its first term is Young's (CACM 17, 1974). mtbf: mean seconds between failures.
    """
    if stall >= 2 * mtbf:
        return mtbf
    part = stall / (2 * mtbf)
    return math.sqrt(2 * stall * mtbf) * (1 + math.sqrt(part) / 3 + part / 9) - stall


def lost_share(interval: float, stall: float, mtbf: float) -> float:
    """The part of the time that does not go on: saves, and work done again (Daly's equation 20, restarts aside)."""
    tried = (interval + stall) / mtbf
    return 1 - interval / mtbf * math.exp(-tried) / -math.expm1(-tried)
