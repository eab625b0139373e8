"""What a conversion is asked, and what it gives for each row of its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..text.sample import BadRow, Row, Turn
from .fields import fields_of
from .images import Images


@dataclasses.dataclass(frozen=True)
class Job:
    """One conversion; `skip` rows at the beginning are passed over, which an earlier attempt has written."""

    kind: str
    source: str  # a file or a folder
    images: str | None = None  # the folder that the rows' paths start from
    images_first: bool = False  # marks go to the front of their turn, as LLaVA's training code puts them
    skip: int = 0


@dataclasses.dataclass(frozen=True)
class Placed:
    """What row number `row` of a source's shard gave: the fields of a sample, or why it is none."""

    shard: str
    row: int
    content: dict[str, Any] | BadRow


@dataclasses.dataclass(frozen=True)
class Draft:
    """A row as it was read: its turns, its images in the order of their marks (`Images.fetch`), its own id.

    With `caption` it is one image and a caption, and has no turns.
    """

    turns: list[Turn]
    images: list[Any] = dataclasses.field(default_factory=list)
    id: Any = None
    source: str = ""  # what the row says that it was made from
    caption: str | None = None


def set_name(source: str) -> str:
    """What a source is called: its file or folder, without an ending."""
    return source.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]


RowOf = tuple[str, int, Row | BadRow]  # shard, number, the row or why it cannot be read


def from_rows(job: Job, rows: Iterable[RowOf], draft: Callable[[Row], Draft]) -> Iterator[Placed]:
    """Every row as a sample; what is wrong with one costs that one. Images of skipped rows are not opened."""
    images, name = Images(job.images), set_name(job.source)
    for count, (shard, number, row) in enumerate(rows):
        if count < job.skip:
            yield Placed(shard, number, {})
            continue
        origin = {"set": name, "format": job.kind, "shard": shard, "row": number}
        try:
            content = row if isinstance(row, BadRow) else fields_of(draft(row), origin, images, job.images_first)
        except BadRow as error:
            content = error
        yield Placed(shard, number, content)
