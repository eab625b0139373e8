"""`megavlm curate inspect`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.errors import InputError

from ..export.place import Place
from .life import lives

NOT_TOLD = {"stage", "key", "keep", "reason"}


def inspect_main(argv: Sequence[str]) -> int:
    """What every stage wrote about one sample, and where it is exported."""
    p = parser("curate inspect", epilog="example: megavlm curate inspect runs/photos 000010042")
    p.add_argument("run", help="a curation run, or an export folder alone")
    p.add_argument("sample", help="a key (of the source or as exported), a URL, or the SHA-256 of the image's bytes")
    args = p.parse_args(argv)
    found = lives(Place.find(args.run), args.sample)
    if not found:
        raise InputError(f"no sample '{args.sample}' here", where=args.run)
    print(json.dumps({"samples": found}, indent=2) if args.json else "\n".join(map(_readable, found)))
    return 0


def _readable(life: dict[str, Any]) -> str:
    lines = [f"{life['key']} of source shard {life['shard']}"]
    lines += [f"  {name} {life[name]}" for name in ("url", "sha256") if life[name]]
    for row in life["stages"]:
        fate = "kept" if row.get("keep", True) else f"dropped: {row['reason']}"
        facts = {name: value for name, value in row.items() if name not in NOT_TOLD and value is not None}
        lines.append(f"  {row['stage']:<12} {fate:<28} " + ", ".join(f"{name}={facts[name]}" for name in facts))
    if place := life["export"]:
        members = ", ".join(f"{ext} at byte {one['offset']}" for ext, one in place["members"].items())
        lines.append(f"  exported as {place['key']}: {place['shard']}.tar, sample {place['sample']} ({members})")
    if gone := life["removed"]:
        lines.append(f"  taken down {gone['date']} as {gone['id']}" + (f": {gone['reason']}" if gone["reason"] else ""))
    return "\n".join(lines)
