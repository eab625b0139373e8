"""megatron-core loaded without what it loads in passing and never uses here.

Every process that trains or answers loads it; as it comes, half of those CPU seconds are these two.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch


def load() -> None:
    """Import megatron-core, unless it is there; whoever imports `wandb` or compiles afterwards gets the real ones."""
    if "megatron.core" not in sys.modules:
        with _without_wandb(), _without_compiler():
            importlib.import_module("megatron.core")


@contextlib.contextmanager
def _without_wandb() -> Iterator[None]:
    """Its inference engine, which we do not run, would log there by itself where it is installed."""
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]  # what Python takes for: not installed
    try:
        yield
    finally:
        del sys.modules["wandb"]


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """`jit_fuser` marks functions for torch.compile, which loads inductor at once; without CUDA they run as written."""
    compiler = torch.compile
    if not torch.cuda.is_available():
        torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def _as_it_is(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    return function if function is not None else lambda given: given
