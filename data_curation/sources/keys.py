"""Keys as names in a tar: what anyone called a sample, made safe, and still told apart."""

from __future__ import annotations

import re

# A dot would end the key (WebDataset splits a name at its first one); anything else odd would not read back as itself.
_ODD = re.compile(r"[^\w/+=@,-]")


def usable_key(name: str) -> str:
    """`name` as a key: no dots, blanks or odd signs, no empty or leading parts ("a.b c/../d" -> "a_b_c/d")."""
    parts = (part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))
    return "/".join(_ODD.sub("_", part) for part in parts) or "_"
