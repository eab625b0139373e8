"""What a stage is trained with: the event `engine`, and the first lines of the first rank's log."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer

from .. import backend
from ..backend.deterministic import ALLOWED
from .ranks import device_name

if TYPE_CHECKING:
    from .loop import StageTrainer

MAKERS = {"transformer_engine": "Transformer Engine", "apex": "NVIDIA apex", "torch": "torch", "megavlm": "MegaVLM"}


def tell_engine(trainer: StageTrainer) -> None:
    """Called on the first rank."""
    parallel, peak = trainer.stage.parallel, trainer.teller.meter.peak
    told: dict[str, Any] = {
        "backend": f"megatron-core {version('megatron-core')}",
        "optimizer": optimizer_name(trainer.optimizer),
        "collectives": backend.backend_name(),
        "device": device_name(),
        "peak_tflops": peak,
        "overlap": " and ".join(overlapped(trainer)) or "nothing",
        "deterministic": deterministic(),
        "tensor_parallel": parallel.tp,
        "pipeline_parallel": parallel.pp,
        "context_parallel": parallel.cp,
        "world": dist.get_world_size(),
        "from_step": trainer.step,
    }
    trainer.session.attempt.event("engine", stage=trainer.name, **told)
    print(f"{trainer.name}: " + ", ".join(f"{key} {value}" for key, value in told.items()), flush=True)
    if peak is None:
        print(f"{trainer.name}: no MFU is told, the dense bf16 peak of '{told['device']}' is not known", flush=True)


def overlapped(trainer: StageTrainer) -> list[str]:
    """The communication that is under way while the model computes."""
    sums = ["gradient sums", "parameter gathers"] if trainer.wrapped.overlap else []
    return [*sums, *(["pipeline sends"] if trainer.stage.parallel.vp > 1 else [])]


def deterministic() -> str:
    """Whether, and by what: torch's own switch, and what this process' environment says to the others."""
    if not torch.are_deterministic_algorithms_enabled():
        return "no"
    return " ".join(["torch", *(f"{name}={os.environ.get(name, '')}" for name in ALLOWED)])


def optimizer_name(optimizer: MegatronOptimizer) -> str:
    """Who made the optimizer that megatron-core found, and its class: what is installed decides."""
    inner: Any = optimizer
    while hasattr(inner, "chained_optimizers") or hasattr(inner, "optimizer"):
        inner = inner.chained_optimizers[0] if hasattr(inner, "chained_optimizers") else inner.optimizer
    module = type(inner).__module__.partition(".")[0]
    return f"{MAKERS.get(module, module)} {type(inner).__name__}"
