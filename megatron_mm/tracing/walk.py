"""Model code run on fake tensors: sizes are computed, values are not, and every storage is followed.

Numbers with a fraction are fake from their birth, and so is whatever is made of them and of pixels. Whole numbers and
masks decide shapes (where samples end, which tile goes where), so those that come from real ones stay real: our step
and megatron-core's schedules read them. What is asked of a fake value (a norm, a loss) is 1, and False of a mask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ATEN = torch.ops.aten
META = torch.device("meta")
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)
C10D = torch.ops.c10d
UNTOLD = (C10D.reduce_scatter_tensor_coalesced_.default, C10D.allgather_into_tensor_coalesced_.default)
VALUES = {torch.bool: False, torch.float32: 1.0, torch.float64: 1.0, torch.bfloat16: 1.0, torch.float16: 1.0}

See = Callable[[Tensor], None]


class Walk(TorchDispatchMode):
    """Inside, floating-point tensors are fake; `see` is shown the result of every operation, views as well."""

    def __init__(self, see: See) -> None:
        super().__init__()
        self._fakes, self._see = FakeTensorMode(allow_non_fake_inputs=True), see

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and guarding each operation against it takes time."""
        return False

    def pixels(self, *shape: int) -> Tensor:
        """Fake tiles, uint8."""
        with self._fakes:
            made = torch.empty(shape, dtype=torch.uint8)
        self._see(made)
        return made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is ATEN._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return VALUES.get(args[0].dtype, 1)
        out = self._made(func, args, kwargs)
        for each in tree_leaves(out):
            if isinstance(each, FakeTensor) or (isinstance(each, Tensor) and not each.is_meta):
                self._see(each)
        return out

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if any(isinstance(each, FakeTensor) for each in given):
            if func in UNTOLD:
                return func(*tree_map_only(FakeTensor, _nothing, args), **kwargs)
            if func in INDEXED:
                args = (args[0], _places(args[1]), *args[2:])
            return self._on_fakes(func, args, kwargs)
        if func is ATEN.empty_like.default and given[0].is_meta and kwargs.get("device") != META:
            options = {"dtype": kwargs.get("dtype") or given[0].dtype, "device": kwargs["device"]}
            return self._on_fakes(ATEN.empty.memory_format, (list(given[0].shape),), options)
        if given or kwargs.get("device") == META:  # experts are built on the meta device, and then given memory
            return func(*args, **kwargs)
        out = self._on_fakes(func, args, kwargs)  # a factory, whose type is known once it has run
        return out if _is_float(out) else func(*args, **kwargs)

    def _on_fakes(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._fakes.dispatch(func, (), args, kwargs)  # entering the mode for each costs half as much again


def _nothing(tensor: Tensor) -> Tensor:
    """What stands for a fake tensor in a collective that torch knows no fake form of; nothing is sent anyway."""
    return torch.empty(0, dtype=tensor.dtype)


def _is_float(out: Any) -> bool:
    return isinstance(out, Tensor) and out.dtype.is_floating_point


def _places(indices: Any) -> list[Tensor | None]:
    """Masks among indices as the numbers of what they choose, which no fake operation may find out."""
    found: list[Tensor | None] = []
    for index in indices:
        real_mask = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        found += index.nonzero(as_tuple=True) if real_mask else [index]
    return found


@contextlib.contextmanager
def walkable() -> Iterator[None]:
    """What is in the way of fake tensors, replaced while inside.

    torch exchanges a parameter's insides when a module changes its type or device, which fake ones refuse.
    megatron-core reads the state of random streams whenever it enters one, and makes a tensor of a list of tensors.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(nn.Module, "_apply", _apply))
        stack.enter_context(replaced(CudaRNGStatesTracker, "fork", lambda *args, **kwargs: contextlib.nullcontext()))
        stack.enter_context(replaced(torch, "tensor", _tensor))
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """`owner.name` is `value` inside; yields what it was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


def _tensor(data: Any, *args: Any, _make: Callable[..., Tensor] = torch.tensor, **kwargs: Any) -> Tensor:
    """torch.tensor, which would read the memory that fake tensors have none of."""
    values = tree_map_only(Tensor, Tensor.item, data) if isinstance(data, list | tuple) else data
    return _make(values, *args, **kwargs)


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply by new parameters in the places of the old ones, with their attributes."""
    made: dict[nn.Parameter, nn.Parameter] = {}  # by those before, of which one may stand in two places
    for each in module.modules() if recurse else [module]:
        for name, parameter in each._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    made[parameter] = _anew(parameter, fn)
                each._parameters[name] = made[parameter]
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = fn(buffer)
    return module


def _anew(parameter: nn.Parameter, fn: Callable[[Tensor], Tensor]) -> nn.Parameter:
    with torch.no_grad():
        changed = fn(parameter)
    if changed is parameter:
        return parameter
    made = nn.Parameter(changed, requires_grad=parameter.requires_grad)
    made.__dict__.update({**parameter.__dict__, **made.__dict__})  # a fake one's own device is among them
    return made
