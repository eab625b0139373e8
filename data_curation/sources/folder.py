"""A plain folder of images, with captions beside them or in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from megavlm.platform.storage import join

from ..source import IMAGE_FIELDS
from .captions_file import CAPTIONS_FILES, CaptionRow, read_captions
from .members import Member, MemberSource
from .tree import File, find_files

COMPANIONS = ("txt", "json")


class Folder(MemberSource):
    """Images anywhere below `path`; a sample's key is its path without the extension.

    Its caption is NAME.txt, its metadata NAME.json. Or one file has both, a row each image: a column `file_name`, the
    caption in `text` or `caption`, anything else metadata (the convention of Hugging Face's ImageFolder).
    """

    kind: str = "folder"
    captions: str | None = None  # that file, relative to `path`; by default metadata.jsonl, .csv or .parquet

    def members(self) -> Iterator[Member]:
        """By key."""
        files = {file.name: file for file in find_files(self.place)}
        name = self.captions or next((name for name in CAPTIONS_FILES if name in files), None)
        rows = list(read_captions(join(self.place, name))) if name else []
        told = {row.file: row for row in rows if row.file}
        groups = _groups(files, {name or ""})
        for key in sorted(groups):
            yield _member(key, groups[key], told)
        for row in rows:
            if row.reason:
                yield Member(row.place, row.reason, row.detail)
            elif row.file not in files:
                yield Member(row.file, "missing_image", f"{row.place}: no file '{row.file}'")


def _groups(files: Mapping[str, File], left_out: set[str]) -> dict[str, list[File]]:
    """The files of each sample by its key."""
    groups: dict[str, list[File]] = {}
    for name, file in files.items():
        if name not in left_out and _ext(name) in (*IMAGE_FIELDS, *COMPANIONS):
            groups.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(file)
    return groups


def _ext(name: str) -> str:
    return PurePosixPath(name).suffix.lstrip(".").lower()


def _member(key: str, files: list[File], told: Mapping[str, CaptionRow]) -> Member:
    if outside := next((file for file in files if not file.inside), None):
        return Member(key, "unsafe_name", f"'{outside.name}' leads out of its folder through a link")
    member = Member(key, bytes=sum(file.size for file in files))
    member.version = ",".join(f"{file.size}:{file.version}" for file in files)
    row = next((told[file.name] for file in files if file.name in told), None)
    for file in files:
        if row is None or _ext(file.name) not in COMPANIONS:
            member.refer(_ext(file.name), file.url)
    if row is not None:
        member.hold("json", json.dumps(row.metadata, sort_keys=True, default=str))
        if row.caption is not None:
            member.hold("txt", row.caption)
    return member
