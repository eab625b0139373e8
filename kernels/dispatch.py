"""Which twin of a kernel runs: plain torch everywhere, Triton where the tensors are on a CUDA device."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch

Backend = Literal["auto", "torch", "triton"]


def use_triton(tensor: torch.Tensor, backend: Backend) -> bool:
    """True when the Triton twin is to run; "auto" takes it for CUDA tensors wherever Triton is installed.

    Raises ImportError when Triton is asked for by name and is not installed.
    """
    installed = importlib.util.find_spec("triton") is not None
    if backend == "triton" and not installed:
        raise ImportError("backend='triton' needs the package triton: pip install triton, or backend='torch'")
    return backend == "triton" or (backend == "auto" and tensor.is_cuda and installed)
