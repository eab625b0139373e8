"""The end of both export stages: what an earlier export left goes, what was taken down stays out, and it is described.

Nothing is done where the manifest already stands for the present configuration, shards and take-downs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from megavlm.platform.shards import ShardWriter

from ..fingerprint import stage_fingerprints, task_fingerprints
from ..funnel import funnel, settle, valid_entries
from ..removal.blocklist import Blocklist
from ..removal.sweep import sweep
from ..stages.base import Outcome
from .layout import REMOVED, begin_change, provenance_path, tidy
from .manifest import FORMAT, Survey, describe, read_manifest
from .provenance import write_beside

if TYPE_CHECKING:
    import pyarrow as pa

    from ..run import CurationRun

Sets = Mapping[str, Mapping[str, Any]]


def blocklist(run: CurationRun) -> Blocklist:
    """What was taken down in this run's folder."""
    return Blocklist.read(run.folder.path(REMOVED))


def begin(run: CurationRun) -> None:
    """What a task does before it writes."""
    begin_change(run.folder.path("export"))


def outcome(run: CurationRun, writer: ShardWriter, rows: pa.Table, received: int) -> Outcome:
    """Write the provenance of what a task's `writer` wrote; returns the task's outcome."""
    names = write_beside(run.folder.path("export"), writer, rows)
    removed = {"removed": received - len(rows)} if received > len(rows) else {}
    return Outcome(received, len(rows), removed, {"shards": names})


def complete(run: CurationRun, stage: str, sets: Callable[[], Sets] | None = None) -> None:
    """Bring the export folder in order and describe it; `sets` says what each set of texts gave and lost."""
    export, blocked = run.folder.path("export"), blocklist(run)
    hashed = stage_fingerprints(run)[stage]
    state = {"fingerprint": hashed, "source": run.plan.digest, "removed": blocked.state()}
    known = read_manifest(export)
    if known is not None and {name: known.get(name) for name in state} == state:
        return
    wrote = [name for entry in valid_entries(run, stage, hashed) for name in entry["notes"]["shards"]]
    tidy(export, [name for name in wrote if provenance_path(export, name).exists()])
    if blocked.lines:
        sweep(export, blocked)
        blocked.write(export / REMOVED)
    survey = Survey.of(export)
    recount(run, stage, survey.samples)
    describe(export, survey, head(run, stage, sets), blocked.state())


def head(run: CurationRun, stage: str, sets: Callable[[], Sets] | None = None) -> dict[str, Any]:
    """What a manifest says of the run; no time is in it."""
    lines = funnel(run)
    place = [line["stage"] for line in lines].index(stage)
    told = [{name: line[name] for name in ("stage", "in", "kept", "dropped")} for line in lines[: place + 1]]
    about = {"format": FORMAT, "recipe": run.folder.config().get("name"), "seed": run.seed}
    about |= {"fingerprint": stage_fingerprints(run)[stage], "source": run.plan.digest, "funnel": told}
    return about | ({"sets": sets()} if sets else {})


def recount(run: CurationRun, stage: str, samples: Mapping[str, int]) -> None:
    """Have the ledger count what the shards hold: `samples` of each, which a take-down may have made fewer."""
    prints = task_fingerprints(run, stage, range(run.config.stages[stage].tasks(run)))
    for task, line in run.ledger.state(stage, prints).items():
        entry = line.entry() if line.fingerprint == prints[task] else None
        kept = sum(samples.get(name, 0) for name in entry["notes"]["shards"]) if entry else 0
        if entry and kept != entry["kept"]:
            lost = {"removed": entry["received"] - kept}
            counts = Outcome(entry["received"], kept, lost, entry["notes"])
            run.ledger.mark(stage, line, prints[task], counts, entry["seconds"])
    settle(run, stage)
