"""Whether sizes divide: said in the recipe's own keys, before anything is built. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megavlm.platform.errors import ConfigError

if TYPE_CHECKING:
    from .config import ModelConfig, Parallel


def require_divisible(value: int, key: str, by: int, by_key: str) -> None:
    """Raise ConfigError unless `by` divides `value`, naming both keys and the divisors that would do."""
    if value % by:
        divisors = [str(n) for n in range(1, min(value, 64) + 1) if value % n == 0]
        raise ConfigError(
            f"{key} {value} does not divide by {by_key} {by}",
            where=by_key,
            fix=f"set {by_key} to one of {', '.join(divisors)}, or change {key}",
        )


def check_layout(model: ModelConfig, parallel: Parallel) -> None:
    """Raise ConfigError where one of the model's axes cannot be split over `parallel`."""
    for axis in (model.encoder, model.connector, model.injection, model.decoder):
        axis.check(parallel)
