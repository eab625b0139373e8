"""LLaVA's format: one JSON list of {id, image, conversations}, and a folder of images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from megavlm.platform.demo.places import expand
from megavlm.platform.errors import InputError
from megavlm.platform.storage import exists, open_file

from ..source import IMAGE_FIELDS
from .json_records import Record, json_records
from .members import Member, MemberSource
from .tree import File, find_files

ANSWERS = ("gpt", "assistant")


class LlavaJson(MemberSource):
    """`path` is the file (a list, or a record a line), `images` the folder that its paths start from.

    A sample's caption is the first answer of its conversations; its metadata are the whole record. Its key is `id`,
    or the record's number where there is none.
    """

    kind: str = "llava_json"
    images: str  # a folder or any fsspec URL

    def members(self) -> Iterator[Member]:
        """In the file's order."""
        if not exists(self.place):
            raise self.nothing(f"no file '{self.place}'", "curation.source.path=FILE.json")
        files = {file.name: file for file in find_files(expand(self.images))}
        with open_file(self.place) as file:
            for number, record in enumerate(json_records(file)):
                yield self._member(number, record, files)

    def _member(self, number: int, record: Record, files: Mapping[str, File]) -> Member:
        value, wrong = record
        if wrong is not None or not isinstance(value, dict):
            what = wrong or f"a JSON {type(value).__name__}, not an object"
            return Member(f"record-{number}", "invalid_json", f"record {number}: {what}")
        key = str(value.get("id") or f"record-{number}")
        try:
            file = _image(value.get("image"), files)
        except InputError as error:
            reason = "unsafe_name" if "leads out" in error.what else "missing_image"
            return Member(key, reason, f"record {number}: {error.what}")
        member = Member(key, bytes=file.size, version=f"{file.size}:{file.version}")
        member.refer(file.name.rsplit(".", 1)[-1].lower(), file.url)
        member.hold("json", json.dumps(value, sort_keys=True))
        if (caption := first_answer(value.get("conversations"))) is not None:
            member.hold("txt", caption)
        return member


def _image(name: object, files: Mapping[str, File]) -> File:
    """The file that a record names; raises InputError."""
    name = name[0] if isinstance(name, list) and len(name) == 1 else name
    if not isinstance(name, str):
        raise InputError("no image" if name is None else f"image is a {type(name).__name__}, not one path")
    parts = name.replace("\\", "/").split("/")
    file = files.get("/".join(part for part in parts if part != "."))
    if ".." in parts or parts[0] == "" or (file and not file.inside):
        raise InputError(f"'{name}' leads out of its folder")
    if file is None or file.name.rsplit(".", 1)[-1].lower() not in IMAGE_FIELDS:
        raise InputError(f"no image file '{name}'")
    return file


def first_answer(conversations: Any) -> str | None:
    """What the model says first; None when there is none."""
    turns = conversations if isinstance(conversations, list) else []
    said = (turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") in ANSWERS)
    return next((value for value in said if isinstance(value, str)), None)
