"""Campaign: 50 times SIGKILL at a random moment of a curation. Does every run still end in the same bytes?

`make campaign NAME=random_kills` takes about a quarter of an hour on two idle cores; the result is random_kills.md
beside this file. The recipe has every stage from a crawl to the export, on two worker processes: features of an EVA-02
with random weights, hierarchical K-means whose iterations two tasks share, captions of a tiny LLaVA with random weights
behind `transformers serve`. One run is left alone. Others are killed and started again, most of them several times:
in every stage in turn, and at moments drawn evenly from the time that the undisturbed run took. Killed is the driver
alone, one of its workers alone, or all of its processes at once.
Exits with 3 when a file of a run that was killed is not the undisturbed run's.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from kill_recipe import plant, recipe, tiny_server
from killing import KINDS, OWN, Place, Victim, run_files, strike, unfinished, until

from megavlm.platform.runs.lines import read_lines

SEED, KILLS, CHAINS = 1, 50, 2  # of the kills, CHAINS times one in every stage
RESULT = Path(__file__).with_suffix(".md")
PACKAGES = ("torch", "timm", "transformers", "faiss-cpu", "pyarrow", "zarr")


@dataclasses.dataclass(frozen=True)
class Kill:
    """One of them: which run, by what aim (a stage, or "clock"), who was killed, and where that was."""

    run: str
    aim: str
    kind: str
    place: Place


@dataclasses.dataclass(frozen=True)
class End:
    """What is left of a run that was killed: files that differ from the undisturbed run's, and unfinished ones."""

    run: str
    changed: list[str]
    left: int


@dataclasses.dataclass
class Campaign:
    """Kills runs of one recipe until there were enough."""

    folder: Path
    recipe: Path
    seconds: dict[str, float]  # that the stages of the undisturbed run took
    total: float
    rng: np.random.Generator
    kills: list[Kill] = dataclasses.field(default_factory=list)
    kinds: Iterator[str] = dataclasses.field(default_factory=lambda: itertools.cycle(KINDS))

    def in_every_stage(self, victim: Victim) -> None:
        """Kill the run once in each of its stages, then let it end."""
        for stage, seconds in self.seconds.items():
            self.kill(victim, stage, seconds)
        victim.finish()

    def by_the_clock(self, victim: Victim) -> None:
        """Kill the run and what goes on from there, until it ends before its time or there were enough."""
        while len(self.kills) < KILLS and self.kill(victim, "clock", self.total):
            pass
        victim.finish()

    def kill(self, victim: Victim, aim: str, seconds: float) -> bool:
        """Start it, and kill it within so many seconds of the beginning, or of the stage's; False when it ended."""
        attempt, process = victim.attempts() + 1, victim.start()
        if aim != "clock":
            until(lambda: aim in victim.stages(attempt), process)
        end = time.monotonic() + self.rng.uniform(0, seconds)
        # the machine may be quicker than it was: with the next stage begun, the aim is all but missed
        until(lambda: time.monotonic() >= end or aim not in ("clock", *victim.stages(attempt)[-1:]), process)
        kind = next(self.kinds)
        struck = strike(process, kind)
        place = victim.place(attempt)
        process.wait()
        if struck:
            self.kills.append(Kill(victim.folder.name, aim, kind, place))
            print(len(self.kills), self.kills[-1], flush=True)
        return struck

    def end(self, victim: Victim, truth: dict[str, str]) -> End:
        """Kill a run in either way, let it come to its end, and compare."""
        number = int(victim.folder.name.split("-")[1])
        (self.in_every_stage if number <= CHAINS else self.by_the_clock)(victim)
        found = run_files(victim.folder)
        changed = sorted(name for name in truth.keys() | found if truth.get(name) != found.get(name))
        print(victim.folder.name, changed or "identical", flush=True)
        return End(victim.folder.name, changed, len(unfinished(victim.folder)))

    def victims(self) -> Iterator[Victim]:
        """New runs until there were enough kills."""
        for number in itertools.count(1):
            if len(self.kills) >= KILLS:
                return
            name = f"run-{number:02d}"
            yield Victim(self.recipe, self.folder / name, self.folder / f"{name}.log")


def main() -> int:
    """Leave one run alone, kill the others, compare, and write the result."""
    started = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"  # of every run: another number would move the last digits of cosines
    with tempfile.TemporaryDirectory() as place, tiny_server(Path(place)) as (model, port):
        folder = Path(place)
        told = recipe(*plant(folder, SEED), model, port, SEED)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
        whole = Victim(folder / "recipe.yaml", folder / "whole", folder / "whole.log")
        begun = time.monotonic()
        whole.finish()
        total, truth = time.monotonic() - begun, run_files(whole.folder)
        seconds = {line["stage"]: line["seconds"] for line in read_lines(whole.folder / "metrics.jsonl")}
        print(f"undisturbed: {total:.0f} s, {len(truth)} files", flush=True)
        campaign = Campaign(folder, whole.recipe, seconds, total, np.random.default_rng(SEED))
        ends = [campaign.end(victim, truth) for victim in campaign.victims()]
    facts = {"files": len(truth), "undisturbed": total, "seconds": time.monotonic() - started}
    RESULT.write_text("\n".join(report(campaign, ends, **facts)) + "\n")
    return 3 if any(end.changed for end in ends) else 0


def report(campaign: Campaign, ends: list[End], files: int, undisturbed: float, seconds: float) -> list[str]:
    """The result's lines."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = [f"{end.run}: {name}" for end in ends for name in end.changed]
    facts = [
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=random_kills`",
        f"- seed: {SEED}",
        f"- machine: {os.cpu_count()} cores, no GPU; times are of no account here",
        f"- versions: {', '.join(f'{name} {version(name)}' for name in PACKAGES)}",
        f"- wall time: {seconds:.0f} s, of which the undisturbed run {undisturbed:.0f} s",
        "",
    ]
    figures = [
        ("kills", len(campaign.kills), KILLS),
        ("runs that were killed and went on to their end", len({kill.run for kill in campaign.kills}), ""),
        ("most kills of one run", max(Counter(kill.run for kill in campaign.kills).values()), ""),
        ("files compared in each", files, ""),
        ("files that differ from the undisturbed run's", len(changed), 0),
        ("unfinished files left beside theirs, hidden", sum(end.left for end in ends), ""),
    ]
    lines = [*facts, *table(["figure", "value", "bound"], figures), *by_stage(campaign), ""]
    every = [
        (number, kill.run, kill.aim, kill.kind, kill.place.stage, kill.place.done)
        for number, kill in enumerate(campaign.kills, start=1)
    ]
    head = ["kill", "run", "aimed at", "killed", "during", "of its tasks marked"]
    words = [
        "",
        "`start`: before the first stage with work to do. Reply caches are compared as sets of lines, funnels without",
        f"seconds; the driver's own records ({', '.join(sorted(OWN))}) are not.",
        "SIGKILL loses nothing that the kernel has taken; power cuts and lost disks are another matter.",
    ]
    return ["# Curations killed at random moments", "", *lines, *table(head, every), *words, *changed]


def by_stage(campaign: Campaign) -> list[str]:
    """A table of the stages that kills struck, and whom."""
    count = Counter((kill.place.stage, kill.kind) for kill in campaign.kills)
    stages = [stage for stage in ("start", *campaign.seconds) if any(count[stage, kind] for kind in KINDS)]
    rows = [(stage, *(count[stage, kind] for kind in KINDS)) for stage in stages]
    words = (
        "Kills by the stage that was last begun, and by who was killed (`all`: driver, workers and what they started):"
    )
    return [
        "",
        words,
        "",
        *table(["stage", *KINDS], [*rows, ("sum", *(sum(row[1 + k] for row in rows) for k in range(3)))]),
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]


if __name__ == "__main__":
    sys.exit(main())
