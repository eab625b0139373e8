"""The source of text: folders of public sets, each in the layout in which it was published."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from pydantic import field_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError, did_you_mean
from megavlm.platform.shards import BadMember, Sample
from megavlm.platform.storage import join

from ..source import Shard
from ..sources.base import Source
from ..sources.tree import find_files
from .formats import FORMATS
from .reading import READERS, read_rows, readable
from .sample import BadRow, TextSample


@dataclasses.dataclass(frozen=True)
class Placed:
    """What row number `row` of a shard gave."""

    key: str
    row: int
    content: TextSample | BadRow


class About(Config):
    """What the person who fetched a set knows of it, for the report and the export's statistics."""

    where: str | None = None  # the place it was fetched from
    licence: str = "unknown"  # as it stood there that day


class TextSets(Source):
    """`path` holds one folder per set, with its files anywhere below; every file is a shard, every row a sample."""

    kind: str = "text"
    sets: dict[str, str]  # the folder's name: its format
    about: dict[str, About] = {}  # the folder's name: place and licence; also of sets that are left out

    @field_validator("sets")
    @classmethod
    def _known(cls, sets: dict[str, str]) -> dict[str, str]:
        if not sets:
            raise ConfigError("no sets", where="sets", fix=f"sets: {{FOLDER: FORMAT}}; formats: {', '.join(FORMATS)}")
        if len(set(map(_plain, sets))) < len(sets):
            raise ConfigError("two sets differ in signs alone", where="sets", fix="give one folder another name")
        for name, text_format in sets.items():
            if ":" not in text_format and text_format not in FORMATS:
                fix = did_you_mean(text_format, FORMATS)
                raise ConfigError(f"unknown text format '{text_format}'", where=f"sets.{name}", fix=fix)
        return sets

    def find(self, members: Path) -> list[Shard]:
        """Set after set in the recipe's order, a set's files by name; raises InputError for a set without files."""
        shards = [shard for name in self.sets for shard in self._files(name)]
        twice = [name for name, count in Counter(shard.name for shard in shards).items() if count > 1]
        if twice:
            raise self.nothing(f"two files would be shard '{twice[0]}'", "rename one of them")
        return shards

    def _files(self, name: str) -> list[Shard]:
        folder = join(self.place, name)
        files = [file for file in find_files(folder) if file.inside and readable(file.name)]
        if not files:
            raise self.nothing(f"no files of set '{name}' in '{folder}'", f"one of: *{', *'.join(READERS)}")
        return [Shard(shard_name(name, file.name), file.url, file.size, self) for file in files]

    def about_set(self, name: str) -> About:
        """What is known of a set's origin."""
        return self.about.get(name, About())

    def set_of(self, shard: Shard) -> str:
        """The set that a shard of this source belongs to."""
        return next(name for name in self.sets if shard.name.startswith(f"{_plain(name)}--"))

    def placed(self, shard: Shard) -> Iterator[Placed]:
        """A shard's rows in order as samples, or as what is wrong with them; one in memory at a time."""
        convert = FORMATS.load(self.sets[self.set_of(shard)])
        for number, row in enumerate(read_rows(shard.url)):
            try:
                content = row if isinstance(row, BadRow) else convert(row)
            except BadRow as error:
                content = error
            yield Placed(f"{shard.name}-{number:08d}", number, content)

    def read(
        self, shard: Shard, keys: Collection[str] | None = None, images: bool = True
    ) -> Iterator[Sample | BadMember]:
        """The samples with their conversation as `json`; no images anywhere."""
        for one in self.placed(shard):
            if isinstance(one.content, BadRow):
                yield BadMember(one.content.detail, one.content.reason, one.key)
            elif keys is None or one.key in keys:
                yield Sample(one.key, {"json": json.dumps(dataclasses.asdict(one.content)).encode()})


def shard_name(text_set: str, file: str) -> str:
    """A name for a set's file that may stand in file names and keys: only letters, digits, `_` and `-`."""
    suffix = next(suffix for suffix in READERS if file.endswith(suffix))
    return f"{_plain(text_set)}--{_plain(file.removesuffix(suffix))}"


def _plain(name: str) -> str:
    return re.sub(r"\W+", "-", name)  # and so no "--" but between set and file
