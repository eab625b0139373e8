"""What a source is: a place, the shards it is read in, and the samples of a shard in a fixed order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavlm.platform.config import Config
from megavlm.platform.demo.places import MARK, expand
from megavlm.platform.errors import InputError

if TYPE_CHECKING:
    from megavlm.platform.shards import BadMember, Sample

    from ..source import Shard

Row = dict[str, Any]
Notes = dict[str, Any]


class Source(Config):
    """Base of every source; its fields are its options.

    A sample has an image (a field of `IMAGE_FIELDS`), its caption as `txt` and its metadata, an object, as `json`.
    """

    kind: str
    path: str  # a folder, a file or any fsspec URL; `{demo}` stands for the folder of the demo's data

    @property
    def place(self) -> str:
        """The path with `{demo}` filled in."""
        return expand(self.path)

    def find(self, members: Path) -> list[Shard]:
        """The shards in their order; raises InputError when there are none.

        A source without files that serve as shards writes lists of members into the folder `members`.
        """
        raise NotImplementedError

    def read(
        self, shard: Shard, keys: Collection[str] | None = None, images: bool = True
    ) -> Iterator[Sample | BadMember]:
        """The samples of a shard, and what is wrong with it, in its order; one image in memory at a time.

        With `keys` a source may leave out others; without `images` it may give their fields without bytes.
        """
        raise NotImplementedError

    def listed(self, shard: Shard) -> tuple[dict[str, Row], Notes]:
        """Rows that the source holds of a shard beside its samples, by key, and notes on what it lacks."""
        return {}, {}

    def notes(self, shard: Shard, usable: int) -> Notes:
        """What is worth a note, once it is known how many samples are usable."""
        return {}

    def describe(self, bad: BadMember, shard: Shard) -> str:
        """What a person is told of something that was left out."""
        return bad.name

    def nothing(self, what: str, fix: str) -> InputError:
        """The error of a place that holds no samples of this kind."""
        demo = "make the demo's data with `megavlm demo --only data`, or set "
        return InputError(what, where="curation.source.path", fix=demo + fix if MARK in self.path else fix)
