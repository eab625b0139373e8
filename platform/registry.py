"""Registries: a name -> "module:object" table of strings, imported on use, so that listing costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ConfigError, MissingPackage, did_you_mean


def load_object(target: str) -> Any:
    """The object of "package.module:object"; raises ConfigError or MissingPackage, naming what is not there."""
    module, _, name = target.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):  # something that the module itself imports
            what = f"package '{error.name}' is needed here"
            raise MissingPackage(what, where=target, fix="see `megavlm doctor`") from None
        raise ConfigError(f"there is no module '{module}'", where=target, fix="write package.module:object") from None
    if not hasattr(found, name):
        raise ConfigError(f"module '{module}' has no '{name}'", where=target, fix=did_you_mean(name, vars(found)))
    return getattr(found, name)


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
