"""The sums of one pack that a loss is made of, and several losses as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..contracts import PackedBatch

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True)
class Outcome:
    """What the last pipeline stage makes of a pack in training."""

    losses: Tensor  # float32 [1, s / cp]: cross entropies
    mismatch: Tensor | None = None  # float32 [cells]: how far a tapped feature is from the teacher's


class Loss:
    """The two sums of one pack. The training step adds them over the global batch before it divides.

    A mean per micro-batch would let a pack with few targets count as much as one with many.
    """

    reads: ClassVar[str] = "losses"  # which of an Outcome's tensors
    name: str
    factor: float = 1.0  # in the sum of all losses

    @property
    def parts(self) -> Sequence[Loss]:
        """The losses it is the sum of."""
        return (self,)

    def total(self, values: Tensor, batch: PackedBatch) -> Tensor:
        """What it reads of the outcome -> scalar: this pack's weighted sum."""
        raise NotImplementedError

    def weight(self, batch: PackedBatch) -> Tensor:
        """Scalar float32: what the global batch's sum is divided by, this pack's share."""
        raise NotImplementedError

    def targets(self, batch: PackedBatch) -> Tensor:
        """Scalar int64: how many places of this pack something is learnt from."""
        return torch.zeros((), dtype=torch.int64)

    def shares(self, outcome: Outcome, batch: PackedBatch, weights: Tensor) -> Tensor:
        """float32 [parts]: this pack's part of each of the global batch's losses, whose divisors are `weights`."""
        totals = [part.total(getattr(outcome, part.reads), batch) for part in self.parts]
        return torch.stack([each.float() for each in totals]) / weights

    def sum(self, shares: Tensor) -> Tensor:
        """[parts] -> scalar: the parts by their factors."""
        return torch.stack([part.factor * share for part, share in zip(self.parts, shares, strict=True)]).sum()


class Sum(Loss):
    """The losses of all of a model's objectives."""

    name = "sum"

    def __init__(self, model: ModelConfig) -> None:
        self._parts = [objective.build(model) for objective in model.objectives]

    @property
    def parts(self) -> Sequence[Loss]:
        """See Loss."""
        return self._parts

    def targets(self, batch: PackedBatch) -> Tensor:
        """See Loss."""
        return torch.stack([part.targets(batch) for part in self.parts]).sum()
