"""`megavlm data verify`: whether every file of an export is the one that its manifest hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from megavlm.platform.cli import parser
from megavlm.platform.errors import CheckFailed, InputError
from megavlm.platform.storage import Url, exists, join, list_files, open_file

from .layout import INDEX, PROVENANCE, STATISTICS
from .manifest import Json, read_manifest

BLOCK = 1 << 22
Problem = dict[str, str]  # file, problem


def verify_main(argv: Sequence[str]) -> int:
    """Read every file once and compare; exit code 3 when one differs."""
    p = parser("data verify", epilog="example: megavlm data verify runs/photos/export")
    p.add_argument("export", help="an export folder, local or remote")
    args = p.parse_args(argv)
    manifest = read_manifest(args.export)
    if manifest is None:
        fix = "an export without one is not complete: `megavlm curate run` goes on"
        raise InputError("no manifest.json in this folder", where=args.export, fix=fix)
    found = list(problems(args.export, manifest))
    if args.json:
        told = {"export": args.export, "shards": len(manifest["shards"]), "samples": manifest["samples"]}
        print(json.dumps(told | {"problems": found}, indent=2))
    else:
        for one in found:
            print(f"{one['file']}: {one['problem']}")
        print(f"{len(manifest['shards'])} shards, {len(found)} files that are not as the manifest says")
    return CheckFailed.exit_code if found else 0


def problems(export: Url, manifest: Json) -> Iterator[Problem]:
    """Every file that is missing, differs, or is a shard that the manifest does not know."""
    hashes = dict(_hashes(manifest))
    for name, digest in hashes.items():
        place = join(export, name)
        if not exists(place):
            yield {"file": name, "problem": "missing"}
        elif _sha256(place) != digest:
            yield {"file": name, "problem": "differs"}
    present = [path.rsplit("/", 1)[-1] for path in [*list_files(export, ".tar"), *list_files(export, INDEX)]]
    yield from ({"file": name, "problem": "not in the manifest"} for name in sorted(present) if name not in hashes)


def _hashes(manifest: Json) -> Iterator[tuple[str, str]]:
    """(file, SHA-256), names as they stand in the folder."""
    yield STATISTICS, manifest["statistics_sha256"]
    for shard in manifest["shards"]:
        yield f"{shard['name']}.tar", shard["sha256"]
        yield f"{shard['name']}{INDEX}", shard["index_sha256"]
        yield f"{PROVENANCE}/{shard['name']}.parquet", shard["provenance_sha256"]


def _sha256(place: str) -> str:
    digest = hashlib.sha256()
    with open_file(place) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
