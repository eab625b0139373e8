"""Next-token prediction: cross entropy over the weighted targets of the whole global batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .base import Objective

if TYPE_CHECKING:
    from ..config import ModelConfig
    from .next_token_model import NextTokenLoss


class NextToken(Objective):
    """sum(weight * cross entropy) / sum(weight), both sums over every pack of the global batch."""

    name: Literal["next_token"] = "next_token"

    def build(self, model: ModelConfig | None = None) -> NextTokenLoss:
        """The loss."""
        from .next_token_model import NextTokenLoss

        return NextTokenLoss(self.weight)
