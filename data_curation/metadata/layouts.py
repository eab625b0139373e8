"""How LAION's releases name their columns, and what they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pyarrow as pa

from megavlm.platform.errors import ConfigError

# Our name -> the names that releases use, compared without regard to case.
NAMES: Mapping[str, tuple[str, ...]] = {
    "url": ("url",),
    "caption": ("text", "caption"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "similarity": ("similarity",),
    "aesthetic": ("aesthetic", "aesthetic_score"),
    "punsafe": ("punsafe",),
    "pwatermark": ("pwatermark",),
    "language": ("language",),
    "nsfw": ("nsfw",),
    "license": ("license",),
    "sample_id": ("sample_id", "hash"),
}
NEEDED = ("url", "caption")
LAYOUTS = ("plain", "joined", "relaion")


@dataclasses.dataclass(frozen=True)
class Layout:
    """`columns` maps our names to a table's; `swapped` says that its widths are heights.

    The plain releases of LAION-5B swap the two; their makers' join swaps them back (img2dataset/laion5B, big_join.py).
    """

    name: str
    columns: Mapping[str, str]
    swapped: bool

    def rename(self, batch: pa.RecordBatch | pa.Table) -> pa.Table:
        """The known columns under our names, widths and heights the right way round, others left out."""
        columns = dict(self.columns)
        if self.swapped and {"width", "height"} <= columns.keys():
            columns["width"], columns["height"] = columns["height"], columns["width"]
        return pa.table({ours: batch.column(theirs) for ours, theirs in columns.items()})


def find_layout(names: Sequence[str], wanted: str, where: str) -> Layout:
    """The layout of a table with these columns; raises ConfigError when it lacks links or captions.

    With `wanted` "detect": columns in lower case are Re-LAION's; punsafe and pwatermark are the joined release's;
    anything else is plain, which LAION-5B tells by LICENSE or NSFW.
    """
    lower = {name.lower(): name for name in names}
    columns = {ours: lower[name] for ours, theirs in NAMES.items() for name in theirs[::-1] if name in lower}
    if missing := [name for name in NEEDED if name not in columns]:
        known = ", ".join("/".join(NAMES[name]) for name in missing)
        raise ConfigError(f"no column {known}", where=where, fix=f"a table of links; this one has: {', '.join(names)}")
    name = _detect(names, lower) if wanted == "detect" else wanted
    if name == "unknown":
        fix = f"curation.source.layout, one of: {', '.join(LAYOUTS)}"
        raise ConfigError(f"cannot tell which release has the columns {', '.join(names)}", where=where, fix=fix)
    return Layout(name, columns, swapped=name == "plain")


def _detect(names: Sequence[str], lower: Mapping[str, str]) -> str:
    if "url" in names:
        return "relaion"
    if {"punsafe", "pwatermark"} & lower.keys():
        return "joined"
    return "plain" if {"license", "nsfw"} & lower.keys() else "unknown"
