"""What a filter is: options (a Config) and a function from what is known of a sample to what is wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError

from . import FILTERS


@dataclasses.dataclass(frozen=True)
class Facts:
    """A sample whose image could be decoded. Sides are in pixels as displayed, `bytes` is the file's size.

    `contrast` is the standard deviation of the gray values (0..128), `metadata` the source's own object.
    """

    key: str
    caption: str
    metadata: Mapping[str, Any]
    width: int
    height: int
    contrast: float
    format: str  # Pillow's name: "JPEG", "PNG", ...
    bytes: int


class Filter(Config):
    """Base of every filter; its fields are its options. `reason` is what the funnel counts."""

    use: str
    reason: ClassVar[str]

    def breaks(self, facts: Facts) -> str | None:
        """What is wrong, in a few words that name the value; None when the sample passes."""
        raise NotImplementedError


def parse_filters(value: object, where: str) -> list[Filter]:
    """`[{use: NAME, ...}]` as filters, each validated by the class registered under its name; raises ConfigError."""
    if not isinstance(value, list):
        raise ConfigError("filters are a list of {use: NAME, ...}", where=where, fix=f"known: {', '.join(FILTERS)}")
    return [_parse(options, f"{where}.{place}") for place, options in enumerate(value)]


def _parse(options: object, where: str) -> Filter:
    if isinstance(options, Filter):
        return options
    if not isinstance(options, dict) or not isinstance(options.get("use"), str):
        raise ConfigError("a filter is a mapping with `use`", where=where, fix=f"known: {', '.join(FILTERS)}")
    try:
        schema = FILTERS.load(options["use"])
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}.use", fix=error.fix) from None
    if not (isinstance(schema, type) and issubclass(schema, Filter)):
        base = "megavlm.data_curation.filters.base:Filter"
        raise ConfigError(f"'{options['use']}' is no filter", where=f"{where}.use", fix=f"derive it from {base}")
    found = schema.parse(options, where=where)
    assert isinstance(found, Filter)
    return found
