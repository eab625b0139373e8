"""The learning rate as a function of the step: no state, so nothing to save. Loads no torch."""

from __future__ import annotations

import math

from ..config import Optimizer


def learning_rate(step: int, optimizer: Optimizer, steps: int) -> float:
    """The rate of update `step` (from 0) of `steps`: linear warm-up to lr, then decay to min_lr at the last update.

    Cosine: min_lr + (lr - min_lr) * (1 + cos(pi * t)) / 2, t from 0 to 1 (Loshchilov & Hutter 2017, equation 5).
    """
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.lr
    done = (step - optimizer.warmup_steps) / max(steps - 1 - optimizer.warmup_steps, 1)
    left = (1 + math.cos(math.pi * done)) / 2 if optimizer.schedule == "cosine" else 1 - done
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * left
