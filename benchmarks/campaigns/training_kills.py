"""Campaign: is a training that was killed 100 times, a third of them inside a save, to the bit the one that never was?

`make campaign NAME=training_kills` takes about half an hour on two cores that nobody else uses; the result is
training_kills.md beside this file. `megavlm train` on two data-parallel ranks is killed (SIGKILL: the command, one
rank, or every process at once) and given again, as often as it takes; half of the kills hit a run that saves while it
waits, half one that saves while it trains. Both go on side by side. Exits with 3 unless every resume began at the
newest whole checkpoint, every loss and gradient norm ever written down is to the bit that of a run nobody touched, no
process outlived its command, and a third of the kills left half a checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from megavlm.megatron_mm.checkpoints.listing import COMPLETE, latest, step_of
from megavlm.platform.runs import Attempt, RunFolder
from megavlm.platform.shards import ShardWriter

KILLS, SEED, STEPS = 100, 1, 300
AIMS = ("save", "step", "any")  # a third each
VICTIMS = ("command", "rank", "everything")
WAYS = {"while it waits": "false", "while it trains": "true"}  # checkpoint.asynchronous
BETWEEN_SECONDS = 1.5  # a kill between saves comes at most so long after the attempt's first step
PATIENCE_SECONDS = 300.0
RESULT = Path(__file__).with_suffix(".md")
PACKAGES = ("torch", "megatron-core")
RECIPE = """\
seed: 3
model:
  tiling: {{tile: 28, max_tiles: 2}}
  encoder: {{name: internvit, image_size: 28, patch_size: 7, layers: 1, hidden: 32, heads: 4, ffn: 64}}
  connector: {{name: pixel_shuffle_mlp, hidden: 48}}
  injection: {{name: inline}}
  decoder: {{name: qwen2, layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 48, vocab: 512}}
data:
  tokenizer: mini
  template: {{name: chatml, system: ""}}
  sets: {{vqa: {folder}/vqa}}
stages:
  sft:
    train: [encoder, connector, decoder]
    mixture: {{weights: {{vqa: 1}}, sequence_length: 128, packs_per_batch: 4}}
    steps: {steps}
    precision: fp32
    optimizer: {{lr: 1e-3, schedule: constant}}
    checkpoint: {{every: 5, keep_last: 2, keep_every: 50}}
"""


class Failed(Exception):
    """A resume that was none, and why."""


class Strike(NamedTuple):
    """One kill: what it was aimed at and whom it hit; where that was; and what the attempt had done by then."""

    way: str
    aim: str
    victim: str
    where: str
    from_step: int | None  # None where it had not come so far
    step: int
    outlived: int  # processes that were there half a minute later

    @property
    def in_save(self) -> bool:
        """Whether it left half a checkpoint."""
        return self.where.startswith("save")


def write_recipe(folder: Path) -> Path:
    """A tiny model over a set of 60 coloured images."""
    with ShardWriter(folder / "vqa") as writer:
        for k in range(60):
            picture, name = io.BytesIO(), ("red", "green", "blue")[k % 3]
            Image.new("RGB", (40 + 40 * (k % 2), 40), name).save(picture, "png")
            turns = [{"role": "user", "content": "<image>What colour?"}, {"role": "assistant", "content": name}]
            writer.write(f"v{k}", {"png": picture.getvalue(), "json": {"id": f"v{k}", "messages": turns}})
    path = folder / "killed.yaml"
    path.write_text(RECIPE.format(folder=folder, steps=STEPS))
    return path


def command(recipe: Path, out: Path, asynchronous: str) -> list[str]:
    """The command that is killed, and given again."""
    words = [sys.executable, "-m", "megavlm.platform.cli", "train", str(recipe), "--nproc", "2", "--out", str(out)]
    return [*words, f"stages.sft.checkpoint.asynchronous={asynchronous}"]


def losses(run: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every line ever written, those of repeated steps too."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in RunFolder(run).metrics() if "loss" in line]


def descendants(root: int) -> list[int]:
    """`root` and every process below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:  # grows as it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def alive(pid: int) -> bool:
    """Whether it still runs; what is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Broken:
    """A run that is killed and goes on."""

    def __init__(self, recipe: Path, out: Path, way: str, draw: random.Random) -> None:
        self.run, self.way, self.draw = RunFolder(out), way, draw
        self.words = command(recipe, out, WAYS[way])
        self.lasting = 0.3  # seconds of a save, as far as is known

    @property
    def attempt(self) -> Attempt:
        """The newest."""
        return self.run.attempts()[-1]

    def strike(self, aim: str, victim: str) -> Strike | None:
        """Start it and kill it; None when it came to its end before that."""
        newest = latest(self.run, "sft") if self.run.root.exists() else None
        before, begun = len(self.run.attempts()), time.time()
        log = (self.run.root.parent / f"{self.run.root.name}.log").open("ab")
        with log, subprocess.Popen(self.words, stdout=log, stderr=log) as process:
            alright = all(self._wait(process, until) for until in self._moments(aim, before))
            if not alright or process.poll() is not None:
                self._ended(process)
                return None
            there = descendants(process.pid)
            self._kill(process, victim, there)
            process.wait(timeout=PATIENCE_SECONDS)
        outlived = self._outlived(there)
        return self._told(aim, victim, newest, before, begun, outlived)

    def _moments(self, aim: str, before: int) -> Iterator[Callable[[], bool]]:
        """What is waited for, one after the other, the last being the instant."""
        if aim == "any":
            yield self._after(self.draw.uniform(0, self._usual_start() + BETWEEN_SECONDS))
            return
        yield lambda: len(self.run.attempts()) > before and bool(self._events("engine"))
        if aim == "step":
            yield lambda: any(beat["doing"] == "step" for beat in self.attempt.heartbeats())
            yield self._after(self.draw.uniform(0, BETWEEN_SECONDS))
            return
        for _ in range(self.draw.randint(1, 3)):
            yield lambda: self._doing() != "save"
            yield lambda: self._doing() == "save"
        with contextlib.suppress(statistics.StatisticsError):
            self.lasting = statistics.median(event["written"] for event in self._events("saved"))
        yield self._after(self.draw.uniform(0, self.lasting / 2))

    def _after(self, seconds: float) -> Callable[[], bool]:
        end: list[float] = []

        def over() -> bool:  # counted from when it is first asked
            if not end:
                end.append(time.monotonic() + seconds)
            return time.monotonic() >= end[0]

        return over

    def _usual_start(self) -> float:
        """Seconds from an attempt's start to its first step."""
        spans = []
        for attempt in self.run.attempts() if self.run.root.exists() else []:
            times = {event["kind"]: event["time"] for event in reversed(attempt.events())}
            if "engine" in times and "started" in times:
                spans.append(times["engine"] - times["started"])
        return statistics.median(spans) if spans else 10.0

    def _doing(self) -> str:
        return next((beat["doing"] for beat in self.attempt.heartbeats() if beat["rank"] == 0), "")

    def _events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.attempt.events() if event["kind"] == kind]

    def _wait(self, process: subprocess.Popen[bytes], until: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                process.kill()
                raise Failed("nothing happened for minutes")
            time.sleep(0.004)
        return True

    def _kill(self, process: subprocess.Popen[bytes], victim: str, there: list[int]) -> None:
        ranks = [beat["pid"] for beat in self.attempt.heartbeats()] if self.run.attempts() else []
        ranks = [pid for pid in ranks if pid in there]
        whom = {"command": [process.pid], "everything": there, "rank": [self.draw.choice(ranks or there)]}[victim]
        for pid in whom:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim == "rank" and not ranks:  # it was too early for one
            process.kill()

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if process.returncode:
            raise Failed(f"a resume ended with exit code {process.returncode}")

    def _outlived(self, there: list[int]) -> int:
        deadline = time.monotonic() + 30
        while any(alive(pid) for pid in there) and time.monotonic() < deadline:
            time.sleep(0.02)
        return sum(alive(pid) for pid in there)

    def _told(
        self, aim: str, victim: str, newest: Path | None, before: int, begun: float, outlived: int
    ) -> Strike | None:
        if len(self.run.attempts()) == before:
            return Strike(self.way, aim, victim, "before the attempt", None, 0, outlived)
        engine = self._events("engine")
        if engine and engine[0]["from_step"] != (step_of(newest) if newest else 0):
            raise Failed(f"it went on from step {engine[0]['from_step']} instead of {newest}")
        step = max((beat["step"] for beat in self.attempt.heartbeats()), default=0)
        at = engine[0]["from_step"] if engine else None
        return Strike(self.way, aim, victim, self._where(begun, bool(engine)), at, step, outlived)

    def _where(self, begun: float, trained: bool) -> str:
        """What the dead left: a save of this attempt without its marker, or none."""
        if not trained:
            return "start-up"
        for folder in self.run.path("checkpoints", "sft").glob("step-*"):
            files = {path.name for path in folder.iterdir()}
            if COMPLETE in files or folder.stat().st_mtime < begun:
                continue
            if ".metadata" in files:
                return "save, index written"
            sizes = [path.stat().st_size for path in folder.glob("*.distcp")]
            return "save, tensors being written" if sizes else "save, planning"
        return "between saves"

    def finish(self) -> None:
        """Let it come to its end."""
        with subprocess.Popen(self.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            self._ended(process)


class Half:
    """Half of the kills, all in one way of saving: as many runs as it takes, each to its end."""

    def __init__(self, recipe: Path, folder: Path, way: str) -> None:
        self.strikes: list[Strike] = []
        self.runs: list[RunFolder] = []
        self.failures: list[str] = []
        draw = random.Random(f"{SEED} {way}")
        while len(self.strikes) < KILLS // 2 and not self.failures:
            broken = Broken(recipe, folder / f"{WAYS[way]}-{len(self.runs)}", way, draw)
            self.runs.append(broken.run)
            try:
                self._kill(broken, draw)
            except Failed as error:
                self.failures.append(f"{way}: {error}")

    def _kill(self, broken: Broken, draw: random.Random) -> None:
        while len(self.strikes) < KILLS // 2:
            told = broken.strike(AIMS[len(self.strikes) % 3], draw.choice(VICTIMS))
            if told is None:
                return
            self.strikes.append(told)
            print(len(self.strikes), *told, flush=True)
        broken.finish()


def differing(run: RunFolder, wanted: dict[int, tuple[float, float]]) -> int:
    """Lines that are not those of the unbroken run, and steps that are missing."""
    lines = losses(run.root)
    wrong = sum(wanted[step] != (loss, norm) for step, loss, norm in lines)
    return wrong + len(wanted.keys() - {step for step, _, _ in lines})


def report(halves: list[Half], wrong: int, seconds: float) -> str:
    """The result's page."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    strikes = [strike for half in halves for strike in half.strikes]
    inside = sum(strike.in_save for strike in strikes)
    runs = [run for half in halves for run in half.runs]
    counts = Counter((strike.where, strike.way) for strike in strikes)
    figures = {
        "kills": f"{len(strikes)} |",
        "of them inside a save, by what was left on disk": f"{inside} | >= {KILLS // 3}",
        "resumes that failed": f"{sum(len(half.failures) for half in halves)} | 0",
        "lines of metrics": f"{sum(len(losses(run.root)) for run in runs)} |",
        "lines that are not to the bit the unbroken run's, and steps without one": f"{wrong} | 0",
        "processes that outlived their command": f"{sum(s.outlived for s in strikes)} | 0",
    }
    table = [
        f"| {where} | " + " | ".join(str(counts[where, way]) for way in WAYS) + " |"
        for where in sorted({strike.where for strike in strikes})
    ]
    each = [
        f"| {number} | {' | '.join('' if value is None else str(value) for value in strike)} |"
        for number, strike in enumerate(strikes, start=1)
    ]
    return "\n".join([
        "# Trainings that are killed and go on", "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}", "",
        "- command: `make campaign NAME=training_kills`",
        f"- seed: {SEED}",
        f"- machine: {os.cpu_count()} cores, no GPU; load {os.getloadavg()[2]:.1f}",
        f"- versions: {', '.join(f'{name} {version(name)}' for name in PACKAGES)}",
        f"- 2 data-parallel ranks, distributed optimizer, {STEPS} steps a run, a checkpoint every 5; {len(runs)} runs",
        f"- wall time: {seconds:.0f} s", "",
        "| figure | value | bound |", "|---|---|---|",
        *(f"| {name} | {value} |" for name, value in figures.items()), "",
        *(f"- {failure}" for half in halves for failure in half.failures),
        "| where it struck | " + " | ".join(f"saving {way}" for way in WAYS) + " |", "|---|---|---|", *table, "",
        "Every kill; `from` is the step that the attempt went on from, `step` the last one it had done:", "",
        "| | saving | aimed at | killed | where it struck | from | step | outlived |", "|---" * 8 + "|", *each, "",
    ])  # fmt: skip


def main() -> int:
    """Train once in peace, then kill."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        recipe = write_recipe(folder)
        subprocess.run(command(recipe, folder / "whole", "false"), check=True, capture_output=True)
        wanted = {step: (loss, norm) for step, loss, norm in losses(folder / "whole")}
        with ThreadPoolExecutor() as pool:
            halves = list(pool.map(partial(Half, recipe, folder), WAYS))
        wrong = sum(differing(run, wanted) for half in halves for run in half.runs)
        RESULT.write_text(report(halves, wrong, time.monotonic() - started))
    strikes = [strike for half in halves for strike in half.strikes]
    outlived, inside = sum(strike.outlived for strike in strikes), sum(strike.in_save for strike in strikes)
    failures = [failure for half in halves for failure in half.failures]
    print(json.dumps({"wrong": wrong, "outlived": outlived, "inside": inside, "failures": failures}))
    return 3 if wrong or outlived or failures or inside < KILLS // 3 or len(wanted) != STEPS else 0


if __name__ == "__main__":
    sys.exit(main())
