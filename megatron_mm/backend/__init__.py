"""Where megatron-core meets the machine: process groups, device, precision, first weights, and its layers' specs."""

from .distributed import PRECISIONS, backend_name, build_context, device, init_distributed, seed_everything, shutdown
from .initialise import initialise

__all__ = [
    "PRECISIONS",
    "backend_name",
    "build_context",
    "device",
    "init_distributed",
    "initialise",
    "seed_everything",
    "shutdown",
]
