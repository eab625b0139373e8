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
            where=by_key if "." in by_key else key,
            fix=f"set {by_key} to one of {', '.join(divisors)}, or change {key}",
        )


def require_stages(layers: int, parallel: Parallel) -> None:
    """Raise ConfigError unless the decoder's layers spread over the (virtual) pipeline stages as `parallel` says."""
    named = {"first_stage_layers": parallel.first_stage_layers, "last_stage_layers": parallel.last_stage_layers}
    fixed = {key: count for key, count in named.items() if count is not None}
    rest, between = layers - sum(fixed.values()), parallel.pp - len(fixed)
    if rest < between or (rest and not between):
        raise ConfigError(
            f"decoder.layers {layers}: {rest} are left for {between} other pipeline stages",
            where=f"parallel.{next(iter(fixed), 'pp')}",
            fix="change first_stage_layers, last_stage_layers or parallel.pp",
        )
    if between:
        what = "decoder.layers" if not fixed else f"decoder.layers less {' and '.join(fixed)}"
        require_divisible(rest, what, between, "parallel.pp" if not fixed else "the other pipeline stages")
    for key, count in [*fixed.items(), ("layers of a pipeline stage", rest // between if between else 0)]:
        require_divisible(count, key, parallel.vp, "parallel.vp")


def check_layout(model: ModelConfig, parallel: Parallel) -> None:
    """Raise ConfigError where one of the model's axes cannot be split over `parallel`."""
    for axis in (model.encoder, model.connector, model.decoder):
        axis.check(parallel)
    model.injection.check(parallel, model.decoder)
    for objective in model.objectives:
        objective.check(parallel)
