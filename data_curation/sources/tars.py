"""Folders of plain WebDataset tars: anybody's, or what several curations exported, merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from megavlm.platform.errors import InputError
from megavlm.platform.shards import BadMember, Sample, scan_tar
from megavlm.platform.storage import exists, file_size, join, list_files

from ..source import Shard
from .base import Source

BETWEEN = "--"  # of a part's name and a tar's, in the name of a shard
Part = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*$")]


class Tars(Source):
    """Every .tar of the folder is a shard of samples: an image, its caption as `txt`, its metadata as `json`.

    `parts` makes one source of several folders. A part's name and a slash stand before its keys, so that equal keys of
    two parts stay two samples, and each sample tells where it came from.
    """

    kind: str = "tars"
    parts: dict[Part, str] = {}  # name -> folder below `path`; none: `path` is the folder
    metadata: bool = True  # false: without the `json` members, which in SA-1B hold every mask of the image

    def find(self, members: Path) -> list[Shard]:
        """By part in the order given, then by name. Raises InputError for the export of a run that is not finished."""
        return [shard for part, folder in self._folders().items() for shard in self._shards(part, folder)]

    def read(
        self, shard: Shard, keys: Collection[str] | None = None, images: bool = True
    ) -> Iterator[Sample | BadMember]:
        """One pass over the tar."""
        prefix = f"{shard.name.partition(BETWEEN)[0]}/" if self.parts else ""
        for item in scan_tar(shard.url):
            if isinstance(item, Sample) and not self.metadata:
                item.fields.pop("json", None)
            yield dataclasses.replace(item, key=prefix + item.key) if item.key else item

    def describe(self, bad: BadMember, shard: Shard) -> str:
        """The member and its tar."""
        return f"member '{bad.name}' of {shard.name}.tar"

    def _folders(self) -> dict[str, str]:
        """Part -> folder; "" where there are no parts."""
        return {part: join(self.place, folder) for part, folder in self.parts.items()} or {"": self.place}

    def _shards(self, part: str, folder: str) -> list[Shard]:
        urls = list_files(folder, suffix=".tar") if exists(folder) else []
        if not urls:
            own = "curation.source.path=FOLDER and, for several, curation.source.parts={NAME: FOLDER below it}"
            raise self.nothing(f"no .tar shards in '{folder}'", own)
        run = folder.rstrip("/").rpartition("/")[0]
        if exists(f"{run}/ledger") and not exists(f"{run}/finished"):
            fix = f"`megavlm curate status {run}` shows what is left; `megavlm curate run` goes on"
            raise InputError("this folder belongs to a curation that is not finished", where=folder, fix=fix)
        names = (url.rpartition("/")[2].removesuffix(".tar") for url in urls)
        before = part + BETWEEN if part else ""
        return [Shard(before + name, url, file_size(url), self) for name, url in zip(names, urls, strict=True)]
