"""What is measured on every node, and how it is told: names, units, and what a slow one calls for."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """A rate, larger is better. Times `scale` it is in `unit`; `advice` ends the sentence on a slow node."""

    title: str
    unit: str
    scale: float
    advice: str

    def tell(self, value: float | None) -> str:
        """With its unit, and three digits that count."""
        return "-" if value is None else f"{_three(value * self.scale)} {self.unit}"


FIGURES: dict[str, Figure] = {
    # bytes/s over one TCP connection, both directions at once, the slower one
    "network": Figure("network", "Mbit/s", 8e-6, "look at its cable, port and switch, and at `ethtool`"),
    # bytes/s of bus bandwidth between two nodes, the slowest pair of GPUs
    "all_reduce": Figure("all-reduce", "MB/s", 1e-6, "look at its network cards, their links and NCCL_IB_HCA"),
    # bytes/s, written and synced to the run's file system
    "disk": Figure("disk", "MB/s", 1e-6, "look at its mount of the shared file system"),
    # bytes/s
    "memory_disk": Figure("/dev/shm", "MB/s", 1e-6, "look for processes that are left over, and at its memory"),
    # floating-point operations per second, the slowest GPU
    "matmul": Figure("matmul", "GFLOP/s", 1e-9, "look at `nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER`"),
}

BETWEEN = ("network", "all_reduce")  # figures that a node has together with another

# What most nodes have, all should have; fewer is a fault.
COUNTS: dict[str, str] = {
    "gpus": "GPUs",
    "nvlinks": "active NVLink links",
    "infiniband_ports": "active InfiniBand ports",
    "infiniband_gbit": "Gbit/s of InfiniBand links",
}

# Versions that a fleet must share; another kernel is told and excludes nobody, since kernels are renewed node by node.
VERSIONS = ("code", "megavlm", "python", "torch", "megatron-core", "transformer-engine", "driver")
TOLD_VERSIONS = ("kernel",)

# Bytes that may run out; little is told and excludes nobody, since on shared nodes it is others who use them.
FREE: dict[str, str] = {"memory_free": "of memory", "memory_disk_free": "in /dev/shm", "disk_free": "on the disk"}


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
