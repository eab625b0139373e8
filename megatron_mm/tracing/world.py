"""One rank of a world that is not there: torch.distributed's "fake" backend, whose collectives return at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist

from megavlm.platform.errors import ConfigError

from .. import backend
from ..backend import cpu
from ..config import Parallel


@contextlib.contextmanager
def one_rank(rank: int, world: int, parallel: Parallel, seed: int) -> Iterator[None]:
    """This process as `rank` of `world`, with megatron-core's groups over them; nobody is left behind.

    Raises ConfigError where `world` does not divide by the layout, and where CUDA is present: layers and devices would
    be others.
    """
    if torch.cuda.is_available():
        raise ConfigError("a trace runs without GPUs", where="CUDA_VISIBLE_DEVICES", fix="set CUDA_VISIBLE_DEVICES=")
    _start(rank, world)
    try:
        backend.init_distributed(parallel, seed)
        yield
    finally:
        backend.shutdown()


def _start(rank: int, world: int) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore  # its import registers the backend

    cpu.install()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
