"""Where megatron-core meets the machine: process groups, device, precision, first weights, and its layers' specs.

Names are imported on use, so that the guards can be asked without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .noise import silence

if TYPE_CHECKING:
    from .distributed import (
        PRECISIONS,
        backend_name,
        build_context,
        device,
        init_distributed,
        seed_everything,
        shutdown,
        start_processes,
    )
    from .weights import initialise

__all__ = [
    "PRECISIONS",
    "backend_name",
    "build_context",
    "device",
    "init_distributed",
    "initialise",
    "seed_everything",
    "shutdown",
    "start_processes",
]

silence()  # here, because whatever is asked of the backend imports megatron-core, which warns as it is imported


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module(".lean", __name__).load()
    home = "weights" if name == "initialise" else "distributed"
    return getattr(importlib.import_module(f".{home}", __name__), name)
