"""Logits to what is asked of them."""

from __future__ import annotations

import torch
from torch import Tensor


def judge(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits [n, vocab], tokens int64 [n] -> float64 [n, 2]: the tokens' log-probabilities, and 1 where likeliest.

    The softmax is in float32.
    """
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, tokens[:, None])[:, 0]
    return torch.stack([own.double(), (logprobs.argmax(-1) == tokens).double()], dim=1)
