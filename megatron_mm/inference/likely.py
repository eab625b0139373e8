"""Log-probabilities of tokens, and the likeliest beside them, as rows of numbers that ranks can tell each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Likely:
    """A token, the natural logarithm of its probability, and the likeliest tokens at its place, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def best(self, count: int) -> Likely:
        """The same with only so many of the likeliest."""
        return replace(self, top=self.top[:count])


def rows_of(logits: Tensor, tokens: Tensor, top: int) -> Tensor:
    """Logits [n, vocab], tokens int64 [n] -> float64 [n, 2 + 2 * top]: token, log-probability, ids, theirs.

    The softmax is of the whole vocabulary at temperature 1, in float32.
    """
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, tokens[:, None])
    best, ids = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
    missing = logprobs.new_zeros(len(tokens), top - best.shape[1])
    parts = [tokens[:, None], own, ids, missing - 1, best, missing - torch.inf]
    return torch.cat([part.double() for part in parts], dim=1)  # float64 holds every id


def read_rows(rows: Tensor) -> list[Likely]:
    """What `rows_of` wrote."""
    top = (rows.shape[1] - 2) // 2
    found = []
    for token, own, *rest in rows.tolist():
        pairs = zip(rest[:top], rest[top:], strict=True)
        found.append(Likely(int(token), own, tuple((int(i), p) for i, p in pairs if i >= 0)))
    return found
