"""The weighted sum of token losses, and the weight to divide it by."""

from __future__ import annotations

from torch import Tensor

from ..contracts import PackedBatch
from .loss import Loss


class NextTokenLoss(Loss):
    """Cross entropies, weighted by `PackedBatch.loss_weights`."""

    name = "next_token"

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def total(self, values: Tensor, batch: PackedBatch) -> Tensor:
        """Cross entropies float32 [1, s] -> scalar: the weighted sum. Places without a target count nothing."""
        return (values * self._weights(batch)).sum()

    def weight(self, batch: PackedBatch) -> Tensor:
        """See Loss."""
        return self._weights(batch).sum()

    def targets(self, batch: PackedBatch) -> Tensor:
        """See Loss."""
        return (self._weights(batch) > 0).sum()

    def _weights(self, batch: PackedBatch) -> Tensor:
        return batch.loss_weights if batch.labels is None else batch.loss_weights * (batch.labels >= 0)
