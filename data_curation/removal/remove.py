"""Taking samples down: first the list says so, then the shards follow, the manifest last."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.errors import CheckFailed, InputError

from ..export.complete import recount
from ..export.layout import REMOVED, sweep_leftovers
from ..export.manifest import Json, Survey, describe
from ..export.place import Place
from ..fingerprint import stage_fingerprints
from ..funnel import write_funnel
from ..pipeline import only_driver
from .blocklist import Blocklist, plain_id
from .sweep import Concerned, concerned, take_out


@dataclasses.dataclass(frozen=True)
class Removal:
    """What `ids` name in an export: `shards` hold it (or did, before this), `blocked` is the list with it."""

    ids: Sequence[str]
    shards: list[Concerned]
    blocked: Blocklist

    @classmethod
    def plan(cls, place: Place, ids: Sequence[str], reason: str | None) -> Removal:
        """Look the ids up; nothing is changed. What an earlier removal was killed over is found as well."""
        known = Blocklist.read(place.removed)
        shards = list(concerned(place.export, known.with_lines({"id": one} for one in ids)))
        rows: dict[str, list[dict[str, str]]] = {one: [] for one in ids}
        kinds: dict[str, list[str]] = {one: [] for one in ids}
        for shard in shards:
            for one, kind, row in shard.hits(rows):
                rows[one].append({"shard": row["source_shard"], "key": row["source_key"]})
                kinds[one].append(kind)
        about = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "reason": reason}
        lines = [
            {"id": one, "kinds": sorted(set(kinds[one])), "samples": rows[one], **about}
            for one in ids
            if one not in known.ids or {(row["shard"], row["key"]) for row in rows[one]} - known.rows
        ]
        return cls(ids, shards, known.with_lines(lines))

    def told(self) -> list[dict[str, Any]]:
        """Per id: how many samples it names now, by kind, and how many it has named before."""
        found: dict[str, Counter[str]] = {one: Counter() for one in self.ids}
        for shard in self.shards:
            for one, kind, _ in shard.hits(found):
                found[one][kind] += 1
        ever: Counter[str] = Counter()
        for line in self.blocked.lines:
            ever[line["id"]] += len(line.get("samples", ()))
        return [
            {"id": one, "kinds": dict(sorted(found[one].items())), "before": ever[one] - found[one].total()}
            for one in self.ids
        ]


def remove(place: Place, ids: Sequence[str], reason: str | None, strict: bool, dry_run: bool) -> Json:
    """Take samples down; returns what was done, with stable keys.

    Raises CheckFailed, before anything is changed, when `strict` and an id names nothing and never has, InputError when
    another process is at work on the export.
    """
    with _alone(place):
        plan = Removal.plan(place, ids, reason)
        told = plan.told()
        unknown = [one["id"] for one in told if not one["kinds"] and one["before"] <= 0]
        if strict and unknown:
            raise CheckFailed(
                f"{len(unknown)} ids name nothing here: {', '.join(unknown[:5])}", where=str(place.export)
            )
        if not dry_run:
            carry_out(place, plan)
    shards = [shard.name for shard in plan.shards]
    samples = sum(len(shard.rows) for shard in plan.shards)
    about = {"export": str(place.export), "dry_run": dry_run, "samples": samples, "shards": shards}
    return about | {"ids": told, "unknown": unknown, "still_held": still_held(place)}


def carry_out(place: Place, plan: Removal) -> None:
    """From the list's first byte on, nothing brings the samples back; killed anywhere, the same call goes on."""
    lists = [place.removed] if place.run is None else [place.removed, place.export / REMOVED]
    for path in lists:
        if Blocklist.read(path) != plan.blocked:
            plan.blocked.write(path)
    sweep_leftovers(place.export)
    for shard in plan.shards:
        take_out(place.export, shard)
    manifest = place.manifest()
    if manifest is None or (not plan.shards and manifest["removed"] == plan.blocked.state()):
        return  # an export that is not complete is described when its run goes on
    survey = Survey.of(place.export)
    if place.run is not None:
        _recount(place, manifest["fingerprint"], survey)
    describe(place.export, survey, manifest, plan.blocked.state())


def _recount(place: Place, fingerprint: str, survey: Survey) -> None:
    """Have the run's ledger and funnel say what the shards hold, unless its options have changed since the export."""
    assert place.run is not None
    stage = next((name for name, one in stage_fingerprints(place.run).items() if one == fingerprint), None)
    if stage is not None:
        recount(place.run, stage, survey.samples)
        write_funnel(place.run)


# Where else a run holds something of its samples: folder or file -> what.
COPIES = {
    "ingest": "captions and metadata (with the URLs)",
    "ledger/members": "captions, and the places of the images",
    "links": "captions and URLs",
    "recaption": "new captions",
    "cache": "replies of models, under a hash of what was asked",
    "text_ingest": "conversations",
    "text_refine": "refined answers",
    "filter": "hashes of the images",
    "embed": "features",
    "assign": "features by cluster",
    "rejected.parquet": "keys of dropped samples",
    "report.html": "thumbnails",
}


def still_held(place: Place) -> list[dict[str, str]]:
    """What a removal leaves as it is: the raw source, and what the run measured."""
    if place.run is None:
        return []
    root = place.run.folder.root
    source = {"where": str(place.run.config.source.path), "what": "the raw source"}
    return [
        source,
        *({"where": str(root / name), "what": what} for name, what in COPIES.items() if (root / name).exists()),
    ]


def read_ids(path: Path) -> list[str]:
    """One id per line, each once; blank lines are passed over. Raises InputError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the ids cannot be read: {error}", where=str(path), fix="a text file, one id per line"
        ) from None
    ids = list(dict.fromkeys(plain_id(line.strip()) for line in lines if line.strip()))
    if not ids:
        raise InputError("no ids in this file", where=str(path), fix="one key, URL or SHA-256 per line")
    return ids


@contextlib.contextmanager
def _alone(place: Place) -> Iterator[None]:
    """No run drives this export meanwhile, and no second removal changes it."""
    if place.run is not None:
        with only_driver(place.run):
            yield
        return
    handle = os.open(place.export, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError("another `megavlm data remove` is at work here", where=str(place.export)) from None
    finally:
        os.close(handle)
