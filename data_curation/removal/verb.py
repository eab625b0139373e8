"""`megavlm data remove`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.cli import parser

from ..export.place import Place
from .remove import Json, read_ids, remove

LISTED = 10


def remove_main(argv: Sequence[str]) -> int:
    """Take samples out of an export, and keep later runs from exporting them again."""
    p = parser(
        "data remove", epilog="example: megavlm data remove runs/photos --ids takedown.txt --reason 'request 17'"
    )
    p.add_argument("export", help="a curation run, or an export folder")
    p.add_argument("--ids", type=Path, required=True, help="exported keys, source keys, URLs or SHA-256, one per line")
    p.add_argument("--reason", help="kept with the ids in removed.jsonl")
    p.add_argument("--strict", action="store_true", help="change nothing and exit 3 when an id names nothing")
    p.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")
    args = p.parse_args(argv)
    told = remove(Place.find(args.export), read_ids(args.ids), args.reason, args.strict, args.dry_run)
    print(json.dumps(told, indent=2) if args.json else _readable(told))
    return 0


def _readable(told: Json) -> str:
    did = "would take out" if told["dry_run"] else "took out"
    lines = [f"{did} {told['samples']} samples of {len(told['shards'])} shards in {told['export']}"]
    for one in told["ids"][:LISTED]:
        kinds = ", ".join(f"{count} by {kind}" for kind, count in one["kinds"].items())
        lines.append(f"  {one['id']}: {kinds or ('taken out before' if one['before'] > 0 else 'names nothing here')}")
    if len(told["ids"]) > LISTED:
        lines.append(f"  and {len(told['ids']) - LISTED} more ids: --json lists them all")
    if told["unknown"]:
        lines.append(f"{len(told['unknown'])} ids name nothing here; they are kept, so that what they name cannot come")
    if told["still_held"]:
        lines += ["still held, and not changed by this:"]
        lines += [f"  {one['where']}: {one['what']}" for one in told["still_held"]]
    return "\n".join(lines)
