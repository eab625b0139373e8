"""A recipe's `source: {kind: ..., ...}` as the source of that kind."""

from __future__ import annotations

from megavlm.platform.errors import ConfigError

from . import SOURCES
from .base import Source

DEFAULT = "img2dataset"


def parse_source(value: object, where: str) -> Source:
    """Validate the options with the schema registered for the kind (img2dataset by default); raises ConfigError."""
    if not isinstance(value, dict) or not isinstance(value.get("kind", DEFAULT), str):
        fix = f"{where}: {{kind: {DEFAULT}, path: FOLDER}}; kinds: {', '.join(SOURCES)}"
        raise ConfigError("a source is a mapping with `kind` and `path`", where=where, fix=fix)
    kind = value.get("kind", DEFAULT)
    try:
        schema = SOURCES.load(kind)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}.kind", fix=error.fix) from None
    source = schema.parse({**value, "kind": kind}, where=where)
    assert isinstance(source, Source)
    return source
