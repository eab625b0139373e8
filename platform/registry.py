"""Registries: a name -> "module:object" table of strings, imported on use, so that listing costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ConfigError, MissingPackage, did_you_mean


def load_object(target: str) -> Any:
    """Import "package.module:object" and return the object."""
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        raise ConfigError(f"module '{module}' has no '{name}'", where=target) from None
    except ModuleNotFoundError as error:
        if error.name and not module.startswith(error.name):
            raise MissingPackage(
                f"package '{error.name}' is needed here", where=target, fix="see `megavlm doctor`"
            ) from None
        raise ConfigError(f"there is no module '{module}'", where=target, fix="write package.module:object") from None


class Registry:
    """The points of one axis. A new point is one file and one line in the table given here.

    A name that contains ":" is taken as a third party's "module:object".
    """

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def load(self, name: str) -> Any:
        """The object registered under `name`; raises ConfigError with the nearest name."""
        if ":" in name:
            return load_object(name)
        if name not in self._table:
            raise ConfigError(f"unknown {self.kind} '{name}'", fix=did_you_mean(name, self._table))
        return load_object(self._table[name])
