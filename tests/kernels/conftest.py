"""Where the Triton twins can be tested: on a CUDA device, or on the CPU through Triton's interpreter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def triton_device() -> Iterator[str]:
    """The device to test a Triton twin on; skips when triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (pip install triton==3.6.0; its interpreter needs no GPU)")
    if torch.cuda.is_available():
        yield "cuda"
        return
    with pytest.MonkeyPatch.context() as patch:
        # Read when a kernel is defined, which is when the module of the twin is first imported: inside the tests.
        patch.setenv("TRITON_INTERPRET", "1")
        yield "cpu"
