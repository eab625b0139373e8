"""The learning rate as a function of the step: no state, so nothing to save. Loads no torch."""

from __future__ import annotations

import math

from ..config import Optimizer


def learning_rate(step: int, optimizer: Optimizer, steps: int, axis: str | None = None) -> float:
    """The rate of update `step` (from 0) of `steps` for an axis: linear warm-up to lr, then decay to min_lr.

    The last update has min_lr, but with `constant`. Cosine: min_lr + (lr - min_lr) * (1 + cos(pi * t)) / 2, t from 0 to
    1 (Loshchilov & Hutter 2017, equation 5). wsd: lr until the last decay_steps updates, then down in a line (MiniCPM,
    arXiv 2404.06395, section 4; the paper's own decay is exponential).
    """
    lr, min_lr, _ = optimizer.of(axis)
    if step < optimizer.warmup_steps:
        return lr * (step + 1) / optimizer.warmup_steps
    start = max(optimizer.warmup_steps, steps - 1 - optimizer.decay_steps if optimizer.decay_steps else 0)
    done = min(max((step - start) / max(steps - 1 - start, 1), 0.0), 1.0)
    left = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2}.get(optimizer.schedule, 1 - done)
    return min_lr + (lr - min_lr) * left
