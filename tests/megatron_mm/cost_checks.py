"""What the tests of the towers' costs share: what autograd keeps, and what is there at one time, storage by storage.

On fake tensors, so that a module has its published widths and nothing is computed. A tile's size is what one more of
many takes: so what doesn't grow with the tiles (a gradient of weights, a weight in another order) is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Run = Callable[[int], Tensor]  # of so many tiles


class Follower(TorchDispatchMode):
    """Every storage from the operation that makes it until it is freed; `peak` in bytes, without the `known` ones."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {key_of(tensor) for tensor in known}
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and key_of(tensor) not in self.live.keys() | self.known:
                self._follow(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        self.live[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key)


def key_of(tensor: Tensor) -> int:
    """Which storage it has."""
    return tensor.untyped_storage()._cdata


def kept(run: Run, module: nn.Module) -> float:
    """Bytes that a forward pass of one tile leaves for the backward pass, parameters excluded."""
    own = {key_of(p) for p in module.parameters()}

    def measured(tiles: int) -> int:
        found: dict[int, torch.UntypedStorage] = {}
        with saved_tensors_hooks(lambda t: found.setdefault(key_of(t), t.untyped_storage()) and t, lambda t: t):
            run(tiles)
        return sum(storage.nbytes() for key, storage in found.items() if key not in own)

    return per_tile(measured)


def alone(run: Run, module: nn.Module) -> float:
    """Bytes of one tile's forward pass at its peak where nothing is kept."""

    def measured(tiles: int) -> int:
        with torch.no_grad(), Follower(module.parameters()) as follower:
            run(tiles)
        return follower.peak

    return per_tile(measured)


def learning(run: Run, module: nn.Module) -> float:
    """Bytes of one tile at the peak of a forward and a backward pass."""

    def measured(tiles: int) -> int:
        with Follower(module.parameters()) as follower:
            run(tiles).sum().backward()
        module.zero_grad()
        return follower.peak

    return per_tile(measured)


def per_tile(measured: Callable[[int], int]) -> float:
    """What one more of many tiles takes."""
    return (measured(64) - measured(32)) / 32


def imitated(build: Callable[[], nn.Module], mode: FakeTensorMode) -> nn.Module:
    """The module that `build` makes, on fake tensors of a CPU in place of its parameters and buffers."""
    with torch.device("meta"):
        module = build()
    with mode:
        for each in module.modules():
            for name, parameter in each._parameters.items():
                if parameter is not None:
                    each._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="cpu"))
            for name, buffer in each._buffers.items():
                each._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="cpu")
    return module
