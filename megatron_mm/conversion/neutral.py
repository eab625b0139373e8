"""What an export writes where the published class has a weight that no feature depends on. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .formats import Constant

if TYPE_CHECKING:
    from torch import Tensor


def full(value: float, *shape: int) -> Callable[[], Tensor]:
    """A tensor of one value, made when its turn comes."""

    def make() -> Tensor:
        import torch

        return torch.full(shape, value)

    return make


def norm(name: str, width: int) -> Iterator[Constant]:
    """A norm that does nothing but normalise."""
    yield Constant(f"{name}.weight", (width,), full(1.0, width))
    yield Constant(f"{name}.bias", (width,), full(0.0, width))
