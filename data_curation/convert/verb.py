"""`megavlm data convert`: other formats to shards."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.errors import ConfigError
from megavlm.platform.progress import Progress, progress

from ..text.sample import BadRow
from . import CONVERSIONS
from .job import Job

TRIED = 1000  # rows of a dry run
EXAMPLE = """\
example: megavlm data convert llava llava_v1_5_mix665k.json sets/llava --images data
kinds: {kinds}; docs/data.md says what each reads
"""


def main(argv: Sequence[str]) -> int:
    """Convert, or go on with a conversion; prints what became of the rows."""
    args = _arguments(argv)
    job = Job(args.kind, args.source, args.images, args.images_first)
    found = _tried(job, args.limit or TRIED) if args.dry_run else _converted(job, args)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print(_told(found))
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = parser("data convert", epilog=EXAMPLE.format(kinds=", ".join(CONVERSIONS)))
    p.add_argument("kind", help="the source's format")
    p.add_argument("source", help="a file, or a folder of files")
    p.add_argument("out", help="a folder for the shards; the same command goes on where it stopped")
    p.add_argument("--images", help="the folder that the rows' image paths start from")
    p.add_argument("--images-first", action="store_true", help="bring the marks to the front of their turn, as LLaVA")
    p.add_argument("--samples-per-shard", type=int, default=1000)
    p.add_argument("--limit", type=int, help="read so many rows only")
    p.add_argument("--dry-run", action="store_true", help=f"read {TRIED} rows (or --limit) and write nothing")
    args = p.parse_args(argv)
    for option in ("samples_per_shard", "limit"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise ConfigError(f"{getattr(args, option)} is not positive", where=f"--{option.replace('_', '-')}")
    if "://" in args.out:
        raise ConfigError(f"'{args.out}' is no folder here", where="out", fix="convert into a folder, then copy it")
    if args.kind not in CONVERSIONS:
        CONVERSIONS.load(args.kind)  # names the nearest, or a third party's
    return args


def _converted(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    from .run import convert

    bar: Progress[Any] = progress(label=f"converting {job.kind}", unit="row")
    with bar:
        state = convert(job, Path(args.out), args.samples_per_shard, args.limit, bar.advance)
    told = dataclasses.asdict(state)
    return {"out": args.out, **{name: told[name] for name in ("rows", "samples", "images", "shards", "rejected")}}


def _tried(job: Job, limit: int) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    rows, first = 0, None
    for one in itertools.islice(CONVERSIONS.load(job.kind)(job), limit):
        rows += 1
        if isinstance(one.content, BadRow):
            reasons[one.content.reason] += 1
        elif first is None:
            fields = one.content.items()
            first = {name: f"{len(value)} bytes" if isinstance(value, bytes) else value for name, value in fields}
    return {"rows": rows, "samples": rows - reasons.total(), "rejected": dict(reasons), "first": first}


def _told(found: dict[str, Any]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(found["rejected"].items())) or "none"
    lines = [f"{found['rows']} rows: {found['samples']} samples, rejected: {reasons}"]
    if "out" in found:
        lines.append(f"{found['shards']} shards with {found['images']} images in {found['out']}")
    elif found["first"] is not None:
        lines.append("the first: " + json.dumps(found["first"], ensure_ascii=False, indent=2))
    return "\n".join(lines)
