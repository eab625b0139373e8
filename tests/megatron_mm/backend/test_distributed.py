"""Starting, changing and ending the process groups."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.platform.errors import ConfigError


def test_too_few_processes(one_process: BuildContext) -> None:
    with pytest.raises(ConfigError, match="1 processes do not divide by tp 2 x pp 2") as error:
        backend.init_distributed(Parallel(tp=2, pp=2), seed=1)
    assert "multiple of 4" in str(error.value)


def test_a_second_stage_keeps_the_processes(one_process: BuildContext) -> None:
    backend.init_distributed(Parallel(), seed=2)
    assert parallel_state.model_parallel_is_initialized() and dist.get_world_size() == 1


def test_layouts_end_their_groups() -> None:
    """megatron-core only forgets them, and each has threads."""
    backend.shutdown()
    before, seen = _gloo_threads(), []
    for _ in range(3):
        backend.init_distributed(Parallel(), seed=1)
        seen.append(_gloo_threads() - before)
    backend.shutdown()
    assert seen[0] == seen[1] == seen[2] > 3 and _gloo_threads() == before


def _gloo_threads() -> int:
    """A thread has its name a moment after it begins, and is listed a moment after it ended: once nothing changes."""
    seen: list[int] = []
    while len(seen) < 5 or len(set(seen[-5:])) > 1:
        time.sleep(0.05)
        seen.append(sum("gloo" in _name(thread) for thread in Path("/proc/self/task").iterdir()))
    return seen[-1]


def _name(thread: Path) -> str:
    try:
        return (thread / "comm").read_text()
    except OSError:  # it has ended
        return ""


def test_shutdown_twice() -> None:
    backend.init_distributed(Parallel(), seed=1)
    backend.shutdown()
    backend.shutdown()
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("precision", "dtype", "fp8"),
    [
        ("fp32", torch.float32, None),
        ("bf16", torch.bfloat16, None),
        ("fp8", torch.bfloat16, "delayed"),
        ("fp8_blockwise", torch.bfloat16, "blockwise"),
    ],
)
def test_context(one_process: BuildContext, precision: str, dtype: torch.dtype, fp8: str | None) -> None:
    context = backend.build_context(Parallel(), precision)
    assert (context.params_dtype, context.fp8) == (dtype, fp8)
    assert context.pre_process and context.post_process
