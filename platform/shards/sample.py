"""What a shard holds, and how a member's name becomes a sample's key and a field's extension."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One sample: `fields` maps an extension ("jpg", "txt", "json") to the bytes stored."""

    key: str
    fields: dict[str, bytes] = field(default_factory=dict)

    def json(self) -> Any:
        """The "json" field, parsed; raises KeyError when absent, ValueError when it is not JSON."""
        return json.loads(self.fields["json"])

    def text(self) -> str:
        """The "txt" field; raises KeyError when absent, ValueError when it is not UTF-8."""
        return self.fields["txt"].decode("utf-8")


@dataclass(frozen=True)
class BadMember:
    """A member of a tar that was left out.

    `reason`: "unsafe_name" (absolute, or with `..`), "no_extension", "not_a_file" (link, device, sparse file),
    "duplicate_key" (the same key and extension again, or a key whose sample had ended: the first is kept),
    "truncated_tar" (the tar ends here; `name` is the member that was cut, "" when the cut fell between members),
    "corrupt_tar" (no readable header here; `name` is ""). The last two end the scan.
    `key`: the sample it would have belonged to, "" when unknown.
    """

    name: str
    reason: str
    key: str = ""


def split_name(name: str) -> tuple[str, str]:
    """Member name -> (key, ext), by WebDataset's rule: the base name splits at its first dot; ext in lower case.

    A leading "./" is dropped. Either part is "" when the name has none ("README" and ".hidden").
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        return "", ""
    stem, _, ext = parts[-1].partition(".")
    return ("/".join([*parts[:-1], stem]) if stem else ""), ext.lower()


def is_unsafe(name: str) -> bool:
    """Whether a member's name could lead out of the folder it is unpacked in."""
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or parts[0].endswith(":")
