"""What a format's readers take for granted without a key that says it: a model that differs is refused. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from megavlm.platform.errors import ConfigError

if TYPE_CHECKING:
    from ..config import ModelConfig

OWN = "use --format megavlm, which holds every model"


class Demand(NamedTuple):
    """The values of a key that the format's readers assume, and why."""

    key: str
    wanted: tuple[Any, ...]
    why: str
    trained: bool = True  # whether training with the wanted value is a way out; another point of an axis is not


def require(model: ModelConfig, demands: Iterable[Demand], format_name: str) -> None:
    """Raise ConfigError naming the first value that the format cannot say; later demands are not looked at."""
    for key, wanted, why, trained in demands:
        value, other = _value(model, key), wanted[-1]
        if value not in wanted:
            raise ConfigError(
                f"{key} {value}: format {format_name} needs {other}, since {why}",
                where=f"model.{key}",
                fix=f"train with model.{key}={other}, or {OWN}" if trained else OWN,
            )


def _value(model: ModelConfig, key: str) -> Any:
    found: Any = model
    for word in key.split("."):
        found = found[word] if isinstance(found, dict) else getattr(found, word)
    return found
