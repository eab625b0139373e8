"""megatron-core without CUDA: the places where it takes a GPU for granted, each with its reason.

Nothing here runs where CUDA is present. Every row of SEAMS was found necessary by taking it away
(tests/megatron_mm/backend/test_cpu.py does so again). The arithmetic of megatron-core stays untouched.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .adam import CpuFusedAdam

CPU = torch.device("cpu")


class TypeName(str):
    """The type string of a CPU tensor that also equals its CUDA spelling.

    megatron-core compares `tensor.type()` with "torch.cuda.FloatTensor" and the like. Equality is all it asks for, so
    a string with two spellings is enough; nobody's frame needs to be inspected.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and other.replace("torch.cuda.", "torch.") == str.__str__(self)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class TorchWithoutCuda:
    """`torch` as one module of megatron-core sees it: factories take device="cuda" for the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def tensor(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(*args, **_on_cpu(kwargs))

    def zeros(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*args, **_on_cpu(kwargs))


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs | {"device": CPU} if kwargs.get("device") == "cuda" else kwargs


@dataclass(frozen=True)
class Seam:
    """One replacement: `target` ("module:attribute") becomes `make(original)`; `where` in megatron-core, and `why`."""

    name: str
    target: str
    make: Callable[[Any], Any]
    where: str
    why: str

    def holder(self) -> tuple[Any, str]:
        """The object that is written to, and the attribute's name."""
        module, _, path = self.target.partition(":")
        *parents, name = path.split(".")
        owner = importlib.import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        return owner, name

    def install(self) -> Callable[[], None]:
        """Replace it, and return what undoes that."""
        owner, name = self.holder()
        original = getattr(owner, name)
        setattr(owner, name, self.make(original))
        return lambda: setattr(owner, name, original)


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda original: value


def _type(original: Callable[..., Any]) -> Callable[..., Any]:
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = original(self, *args, **kwargs)
        return TypeName(name) if isinstance(name, str) else name

    return type_


def _scatter(original: Callable[..., Any]) -> Callable[..., Any]:
    def scatter(tensor: torch.Tensor, scatter_list: list[torch.Tensor] | None = None, *args: Any, **kw: Any) -> Any:
        parts = scatter_list and [part.contiguous() for part in scatter_list]
        return original(tensor, parts, *args, **kw)

    return scatter


def _get_rng_state(device: Any = None, clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.random.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, device: Any = None, graph_safe: bool = False) -> None:
    torch.random.set_rng_state(new_state)


def _manual_seed(seed: int) -> None:
    torch.random.default_generator.manual_seed(seed)


_CORE = "megatron.core."
_RANDOM = _CORE + "tensor_parallel.random:"
_RNG_WHY = "the model-parallel random stream; without it fork() silently keeps the current stream"
_FACTORY_WHY = 'torch.tensor/zeros(device="cuda") written out'
_ADAM_WHY = "without apex it takes torch's AdamW, whose state layout the distributed optimizer cannot reload"


def _seam(name: str, target: str, make: Callable[[Any], Any], where: str, why: str) -> Seam:
    return Seam(name, target, make, where, why)


SEAMS: tuple[Seam, ...] = (
    _seam("current_device", "torch.cuda:current_device", _constant(lambda: CPU),
          "param_and_grad_buffer, rotary_pos_embedding, mappings, p2p_communication, async_utils", "device of buffers"),
    _seam("synchronize", "torch.cuda:synchronize", _constant(lambda device=None: None),
          "p2p_communication, filesystem_async", "a fence around sends and checkpoint copies"),
    _seam("get_rng_state", "torch.cuda:get_rng_state", _constant(_get_rng_state), "tensor_parallel.random", _RNG_WHY),
    _seam("manual_seed", "torch.cuda:manual_seed", _constant(_manual_seed), "tensor_parallel.random", _RNG_WHY),
    _seam("tracker_get", _RANDOM + "_get_cuda_rng_state", _constant(_get_rng_state), "tracker.fork", _RNG_WHY),
    _seam("tracker_set", _RANDOM + "_set_cuda_rng_state", _constant(_set_rng_state), "tracker.fork", _RNG_WHY),
    _seam("factories_optimizer", _CORE + "optimizer.optimizer:torch", _constant(TorchWithoutCuda()),
          "optimizer.py", _FACTORY_WHY),
    _seam("factories_clip", _CORE + "optimizer.clip_grads:torch", _constant(TorchWithoutCuda()),
          "clip_grads.py", _FACTORY_WHY),
    _seam("factories_utils", _CORE + "utils:torch", _constant(TorchWithoutCuda()),
          "utils.py, the gradient norm", _FACTORY_WHY),
    _seam("factories_schedules", _CORE + "pipeline_parallel.schedules:torch", _constant(TorchWithoutCuda()),
          "schedules.py", _FACTORY_WHY),
    _seam("tensor_type", "torch:Tensor.type", _type,
          "clip_grads, distrib_optimizer, optimizer", "asks for torch.cuda.*Tensor by name"),
    _seam("tensor_cuda", "torch:Tensor.cuda", _constant(lambda self, *args, **kwargs: self),
          "language_module (tied embeddings), optimizer", "moves weights to the GPU"),
    _seam("scatter", "torch.distributed:scatter", _scatter,
          "gloo, not megatron-core", "gloo scatters non-contiguous tensors wrongly, in silence"),
    _seam("adam", _CORE + "optimizer:Adam", _constant(CpuFusedAdam), "optimizer", _ADAM_WHY),
    _seam("adam_flag", _CORE + "optimizer:USING_PYTORCH_OPTIMIZER", _constant(False), "optimizer", _ADAM_WHY),
    _seam("adam_distributed", _CORE + "optimizer.distrib_optimizer:Adam", _constant(CpuFusedAdam),
          "distrib_optimizer", _ADAM_WHY),
    _seam("adam_have", _CORE + "optimizer.distrib_optimizer:HAVE_APEX_OR_TE", _constant(True),
          "distrib_optimizer", _ADAM_WHY),
    _seam("adam_apex", _CORE + "optimizer.distrib_optimizer:USING_APEX_OPTIMIZER", _constant(True),
          "distrib_optimizer", _ADAM_WHY),
)  # fmt: skip


def _local(name: str) -> Callable[[Any], Any]:
    return lambda original: getattr(importlib.import_module(_CORE + "utils"), name)


_FUSED_WHY = "takes Transformer Engine's or apex' CUDA kernels as soon as they are installed"

# Where neither is installed they change nothing.
FUSED_SEAMS: tuple[Seam, ...] = (
    _seam("clip_apply", _CORE + "optimizer.clip_grads:multi_tensor_applier", _local("local_multi_tensor_applier"),
          "clip_grads", _FUSED_WHY),
    _seam("clip_norm", _CORE + "optimizer.clip_grads:l2_norm_impl", _local("local_multi_tensor_l2_norm"),
          "clip_grads", _FUSED_WHY),
    _seam("clip_scale", _CORE + "optimizer.clip_grads:multi_tensor_scale_impl", _local("local_multi_tensor_scale"),
          "clip_grads", _FUSED_WHY),
    _seam("copy_apply", _CORE + "optimizer.optimizer:multi_tensor_applier", _local("local_multi_tensor_applier"),
          "optimizer", _FUSED_WHY),
    _seam("copy_scale", _CORE + "optimizer.optimizer:multi_tensor_scale_impl", _local("local_multi_tensor_scale"),
          "optimizer", _FUSED_WHY),
)  # fmt: skip

_MARK = "_megavlm_cpu_seams"  # on torch.cuda: what undoes each seam; also says that they are in place


def install() -> None:
    """Put every seam in place, once per process; does nothing where CUDA is present."""
    if not torch.cuda.is_available() and not hasattr(torch.cuda, _MARK):
        setattr(torch.cuda, _MARK, {seam.name: seam.install() for seam in (*SEAMS, *FUSED_SEAMS)})


@contextmanager
def without(name: str) -> Iterator[None]:
    """One seam taken away for a while, to see what it is for."""
    seam = next(seam for seam in SEAMS if seam.name == name)
    getattr(torch.cuda, _MARK)[name]()
    try:
        yield
    finally:
        seam.install()
