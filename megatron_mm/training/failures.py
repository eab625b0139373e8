"""What a training died of, with the figures and the keys that change it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from megavlm.platform.errors import MegaVLMError

from .ranks import GIB
from .stalls import WAITING, suspects

if TYPE_CHECKING:
    from .loop import StageTrainer

SETTLE_SECONDS = 2.0
STALLED = ("timed out", "timeout", "connection closed by peer", "connection reset by peer")


@contextlib.contextmanager
def explained(trainer: StageTrainer) -> Iterator[None]:
    """Raise MegaVLMError in place of what torch says when memory ends, or when another rank does not answer."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(trainer, error) from error
    except RuntimeError as error:  # torch's DistBackendError is one; gloo raises the bare class
        if not any(sign in str(error).lower() for sign in STALLED):
            raise
        raise stalled(trainer, error) from error


def out_of_memory(trainer: StageTrainer, error: BaseException) -> MegaVLMError:
    """The figures, and what to change, the cheapest first."""
    stage, where = trainer.stage, f"stages.{trainer.name}"
    batch, length = trainer.batch, stage.mixture.sequence_length
    pack = f"packs of {length} tokens"
    if batch is not None:
        pack += f", the largest of this step with {max(map(max, batch.shares.counts), default=0)} tiles"
    ways = []
    if stage.recompute != "full":
        ways.append(f"{where}.recompute={'selective' if stage.recompute == 'none' else 'full'}")
    ways.append(f"{where}.mixture.sequence_length below {length} (in a new run folder)")
    parallel = stage.parallel
    if parallel.tp > 1 and not parallel.sequence_parallel:
        ways.append(f"{where}.parallel.sequence_parallel=true")
    ways.append(f"{where}.parallel.tp={2 * parallel.tp} or parallel.pp={2 * parallel.pp}")
    return MegaVLMError(
        f"out of memory: {memory_figures()}; {pack}. {_first_sentence(error)}",
        where=f"stage '{trainer.name}', step {trainer.step + 1}",
        fix=f"in this order: {'; '.join(ways)}. {trainer.saved_state()}",
    )


def memory_figures() -> str:
    """What the allocator holds, in words."""
    if not torch.cuda.is_available():
        return "on a CPU"
    free, whole = torch.cuda.mem_get_info()
    used, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    figures = f"{used / GIB:.1f} GiB allocated and {held / GIB:.1f} GiB reserved at the peak"
    return f"{figures}, of {whole / GIB:.1f} GiB ({free / GIB:.1f} GiB free)"


def stalled(trainer: StageTrainer, error: BaseException) -> MegaVLMError:
    """Every rank that waited says so, and the ones that do not are suspected."""
    trainer.session.pulse(WAITING)
    time.sleep(SETTLE_SECONDS)  # for the others to say it too
    return MegaVLMError(
        f"a rank does not answer: {_first_sentence(error)}. {suspects(trainer.session.attempt)}",
        where=f"stage '{trainer.name}', step {trainer.step + 1}",
        fix=f"look at that rank's log and machine; leave the machine out when it stalls again. {trainer.saved_state()}",
    )


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
