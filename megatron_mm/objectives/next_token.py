"""Next-token prediction: cross entropy over the weighted targets of the whole global batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megavlm.platform.config import Config

if TYPE_CHECKING:
    from ..decoders.base import Decoder
    from .next_token_model import NextTokenLoss


class NextToken(Config):
    """sum(weight * cross entropy) / sum(weight), both sums over every pack of the global batch."""

    name: Literal["next_token"] = "next_token"

    def parameters(self, decoder: Decoder) -> int:
        """None of its own."""
        return 0

    def build(self) -> NextTokenLoss:
        """The loss."""
        from .next_token_model import NextTokenLoss

        return NextTokenLoss()
