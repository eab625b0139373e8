"""Campaign: the ledger with 200,000 shards. Do a few hundred workers and whoever asks for the state stay quick?

`make campaign NAME=ledger_200k` takes a quarter of an hour on two cores; the result is ledger_200k.md beside this file.
Real: the list of 200,000 (empty) shards, the driver (`megavlm curate run`), the commands, their leases, `work`, the
ledger and `megavlm curate status`. Not real: the stages' own work, and Slurm: 256 workers take turns in as many
processes as there are cores, each under its own name, block by block.
Exits with 3 when status takes 2 s, the ledger has more than 2,000 files, or a task was done twice.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import yaml

from megavlm.data_curation.pipeline import pending_tasks
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.stages.base import Outcome, Stage, Worker
from megavlm.platform.executor import WORKER, Job, TaskResult
from megavlm.slurm.arrays.board import Board
from megavlm.slurm.arrays.worker import run_command

SHARDS, WORKERS, TASKS_PER_COMMAND = 200_000, 256, 500
STATUS_SECONDS, FILES = 2.0, 2000
RESULT = Path(__file__).with_suffix(".md")
CLI = [sys.executable, "-m", "megavlm.platform.cli"]
LOOK_EVERY = 20.0  # seconds; looking takes a core from those who work


class PerShard(Stage):
    """A stage that does nothing, and says what a filter would."""

    judges: ClassVar[bool] = False  # there are no sidecars

    def worker(self, run: CurationRun) -> Worker:
        """At once."""
        dropped = {"failed_to_download": 900, "too_small": 123, "aspect_ratio": 12}
        return lambda task: Outcome(10_000, 8_965, dropped)


class Overall(PerShard):
    """One that looks at all shards at once."""

    per_shard: ClassVar[bool] = False


class TakingTurns:
    """The executor: `workers` of an array on this machine."""

    def run(self, job: Job, *, workers: int) -> list[TaskResult]:
        """Lease and run every command."""
        board = Board.make(job.logs / f"{job.name}-board", job, range(len(job.tasks)), workers)
        cores, context = os.cpu_count() or 1, multiprocessing.get_context("fork")
        turns = [context.Process(target=take_turns, args=(board, range(core, workers, cores))) for core in range(cores)]
        for process in turns:
            process.start()
        for process in turns:
            process.join()
        endings = board.told().endings
        return [TaskResult(words, *endings[n][1:], job.log_path(n)) for n, words in enumerate(job.tasks)]


def take_turns(board: Board, slots: Sequence[int]) -> None:
    """The workers of these slots do one block each, then the next, until none is left."""
    commands = board.commands()
    leases = {slot: board.lease(slot, commands.blocks) for slot in slots}
    while leases:
        for slot in list(leases):
            block = next(leases[slot], None)
            if block is None:
                del leases[slot]
            for index in block or ():
                os.environ[WORKER] = f"slurm-1-{slot}"
                run_command(board, slot, index, commands.tasks[str(index)], Path(commands.logs[str(index)]))


# A curation's shape. A recipe names each stage once, so each has a class of its own.
KINDS = {
    "Ingest": PerShard, "Filter": PerShard, "Embed": PerShard, "Cluster": Overall, "Assign": PerShard,
    "Deduplicate": Overall, "Select": Overall, "Export": Overall,
}  # fmt: skip
globals().update({name: type(name, (kind,), {"__module__": __name__}) for name, kind in KINDS.items()})
LAST = "ledger_200k:Assign"  # the last stage per shard


def recipe(raw: Path) -> dict[str, Any]:
    """Eight stages over the raw shards."""
    executor = {"name": "ledger_200k:TakingTurns", "workers": WORKERS, "tasks_per_command": TASKS_PER_COMMAND}
    stages: dict[str, Any] = {f"ledger_200k:{name}": {} for name in KINDS}
    return {"name": "ledger", "curation": {"source": {"path": str(raw)}, "stages": stages, "executor": executor}}


class Watch(threading.Thread):
    """Counts the ledger's files, and asks for the state, while the run goes on."""

    def __init__(self, run: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.over = run / "ledger", threading.Event()
        self.files, self.seconds = 0, [0.0]

    def run(self) -> None:
        """Until `over` is set."""
        while not self.over.wait(LOOK_EVERY):
            self.files = max(self.files, sum(path.is_file() for path in self.folder.rglob("*")))
            if (self.folder / "shards.json").exists():
                self.seconds.append(measured("curate", "status", str(self.folder.parent))[0])


def started(words: Sequence[str]) -> subprocess.Popen[bytes]:
    """A megavlm of its own, which finds the stages of this file."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "MEGAVLM_QUIET": "1"}
    return subprocess.Popen([*CLI, *words], stdout=subprocess.DEVNULL, env=environment, start_new_session=True)


def measured(*words: str) -> tuple[float, float]:
    """Seconds, and peak memory in MB, of a command that has to succeed."""
    begun, process = time.monotonic(), started(words)
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return time.monotonic() - begun, usage.ru_maxrss / 1024


def killed_in(run: Path, words: Sequence[str], stage: str, share: float) -> None:
    """Start the run, and kill -9 it with all it started when so much of a stage is done."""
    process, size = started(words), share * SHARDS * 190  # bytes of its lines, roughly
    while sum(part.stat().st_size for part in (run / "ledger" / stage).glob("part-*")) < size:
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode}")
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def status(run: Path) -> tuple[float, float]:
    """The slowest of five, with its memory."""
    return max(measured("curate", "status", str(run)) for _ in range(5))


def look(folder: Path) -> dict[str, Any]:
    """The whole campaign in an empty folder: its figures."""
    raw, run = folder / "raw", folder / "run"
    raw.mkdir()
    for number in range(SHARDS):
        (raw / f"{number:06d}.tar").touch()
    file = folder / "ledger.yaml"
    file.write_text(yaml.safe_dump(recipe(raw), sort_keys=False))
    words = ["curate", "run", str(file), "--out", str(run)]
    watch = Watch(run)
    watch.start()
    killed_in(run, words, LAST, 0.9)
    in_between = status(run)
    opened = CurationRun.open(run)
    begun = time.monotonic()
    pending = len(pending_tasks(opened, opened.config.stages[LAST]))
    pending_seconds = time.monotonic() - begun
    resumed = measured(*words)
    watch.over.set()
    watch.join()
    versions = Counter(line.version for line in opened.ledger.state(LAST).values())
    return {
        "status, a stage running (its parts not merged), seconds": in_between[0],
        "status, a stage running, peak MB": in_between[1],
        "status while 256 workers are busy on the same two cores, slowest seconds": max(watch.seconds),
        "status, everything done, seconds": status(run)[0],
        "tasks that were pending after the kill": pending,
        "pending_tasks of that stage, seconds": pending_seconds,
        "tasks done twice": SHARDS - versions[1],
        "the rest of the run after the kill, seconds": resumed[0],
        "driver, peak MB": resumed[1],
        "files in the ledger, at most": watch.files,
        "files in the ledger, at the end": sum(path.is_file() for path in (run / "ledger").rglob("*")),
    }


def holds(figures: Mapping[str, float]) -> bool:
    """Whether the bounds are kept."""
    quick = [seconds for name, seconds in figures.items() if name.startswith("status") and name.endswith("seconds")]
    files = [count for name, count in figures.items() if name.startswith("files")]
    return max(quick[0], quick[-1]) < STATUS_SECONDS and max(files) <= FILES and not figures["tasks done twice"]


def main() -> int:
    """Measure and write the table."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = look(Path(folder))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# The ledger with 200,000 shards",
        "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=ledger_200k`",
        f"- machine: {os.cpu_count()} cores, local disk",
        f"- {SHARDS} shards, {len(KINDS)} stages, {WORKERS} workers, {TASKS_PER_COMMAND} tasks per command",
        "- real: the shards' list, the driver, its commands, leases, `work`, the ledger, `megavlm curate status`",
        "- not real: what a stage does with a shard (nothing), and Slurm: the workers take turns in two processes",
        f"- wall time: {time.monotonic() - begun:.0f} s",
        f"- bounds: status below {STATUS_SECONDS:g} s, at most {FILES} files, no task done twice",
        "",
        "| what | figure |",
        "|---|---|",
        *(f"| {name} | {value:,.4g} |" for name, value in figures.items()),
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0 if holds(figures) else 3


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # the run's stages are named after this file
    sys.exit(main())
