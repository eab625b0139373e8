"""The weighted sum of token losses, and the weight to divide it by."""

from __future__ import annotations

from torch import Tensor

from ..contracts import PackedBatch


class NextTokenLoss:
    """The two sums of one pack. The training step adds them over the global batch before it divides.

    A mean per micro-batch would let a pack with few targets count as much as one with many.
    """

    def total(self, losses: Tensor, batch: PackedBatch) -> Tensor:
        """Cross entropies float32 [1, s] -> scalar: the weighted sum. Places without a target count nothing."""
        return (losses * self._weights(batch)).sum()

    def weight(self, batch: PackedBatch) -> Tensor:
        """Scalar float32: what the global batch's sum is divided by, this pack's share."""
        return self._weights(batch).sum()

    def targets(self, batch: PackedBatch) -> Tensor:
        """Scalar int64: how many places of this pack something is learnt from."""
        return (self._weights(batch) > 0).sum()

    def _weights(self, batch: PackedBatch) -> Tensor:
        return batch.loss_weights if batch.labels is None else batch.loss_weights * (batch.labels >= 0)
