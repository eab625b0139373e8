"""What a download made of its images: one that shrank them below a filter has wasted itself, and is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from megavlm.platform.errors import ConfigError

from ..source import Shard

# Single rows may lie or be rounded; a resize touches nearly all that are large enough.
TOLERATED = 0.01


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a filter asks: the shorter side in pixels, and longer / shorter side at most."""

    min_side: int
    max_aspect: float


def refuse_shrunk(shard: Shard, rows: Iterable[Mapping[str, Any]], limits: Limits | None) -> None:
    """Raise ConfigError when images that were large enough came out of the download too small for the filter.

    `rows` are img2dataset's: original_width and original_height are those on the web, width and height those stored.
    """
    if limits is None:
        return
    sizes = [size for row in rows if (size := _sizes(row))]
    fit = [size for size in sizes if _fits(*size[:2], limits)]
    shrunk = [size for size in fit if min(size[2:]) < limits.min_side]
    if len(shrunk) <= TOLERATED * len(fit):
        return
    width, height, stored_width, stored_height = shrunk[0]
    raise ConfigError(
        f"{len(shrunk)} of {len(fit)} images were large enough for min_side {limits.min_side} and were stored smaller:"
        f" {width} x {height} became {stored_width} x {stored_height}",
        where=f"{shard.url} against curation.stages.filter.min_side",
        fix="download again with --resize_mode no, or with --resize_mode keep_ratio --resize_only_if_bigger True"
        f" --image_size {limits.min_side} (or more); or set curation.stages.filter.min_side={min(shrunk[0][2:])}",
    )


def _fits(width: int, height: int, limits: Limits) -> bool:
    short, long = sorted((width, height))
    return short >= limits.min_side and long <= limits.max_aspect * short


def _sizes(row: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """(width, height) on the web and stored, where a row has all four."""
    names = ("original_width", "original_height", "width", "height")
    try:
        found = tuple(int(row[name]) for name in names)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (found[0], found[1], found[2], found[3]) if min(found) > 0 else None
