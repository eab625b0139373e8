"""What test_kills.py starts: it loads torch once, and forks two ranks for every attempt at a training, to kill them.

`kill_worker.py RECIPE OUT` trains OUT/null in peace, then OUT/false and OUT/true (checkpoint.asynchronous), each killed
twice: inside a save, and some steps later. Prints what each kill left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from megavlm.megatron_mm.checkpoints.listing import COMPLETE, latest, step_of
from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.megatron_mm.training.work import work
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import Attempt, RunFolder

RANKS, STAGE = 2, "sft"


def prepared(recipe: Path, out: Path, asynchronous: str) -> RunFolder:
    loaded = load_recipe(str(recipe), [f"stages.{STAGE}.checkpoint.asynchronous={asynchronous}"])
    run = RunFolder.create(out / asynchronous, loaded.tree, loaded.origins, [])
    build_manifest(StageData.of(loaded, STAGE), run.path("stages", STAGE, "packs"))
    return run


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def forked(run: RunFolder, attempt: Attempt, rank: int, port: int) -> int:
    """A rank's process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        log = os.open(attempt.log_path(rank), os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work(run, attempt, [STAGE], Pulse(attempt, rank, RANKS), lambda: False)
        os._exit(0)
    finally:
        os._exit(1)


def attempt_at(run: RunFolder, until: Callable[[Attempt], bool] | None) -> bool:
    """Train to the end, or kill both ranks when `until` says so; whether it came to the end."""
    with run.new_attempt() as attempt:
        port = free_port()
        pids = {forked(run, attempt, rank, port) for rank in range(RANKS)}
        codes: list[int] = []
        while pids:
            if until and until(attempt):
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                until = None
            for pid in list(pids):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    pids.remove(pid)
                    codes.append(os.waitstatus_to_exitcode(status))
            time.sleep(0.002)
    if set(codes) not in ({0}, {-signal.SIGKILL}):
        raise RuntimeError(f"{attempt.logs}: {codes}")
    return codes == [0] * RANKS


def inside_a_save(run: RunFolder, file: str) -> Callable[[Attempt], bool]:
    """When the second checkpoint, or a later one, has such a file and is not whole."""

    def now(attempt: Attempt) -> bool:
        found = run.path("checkpoints", STAGE).glob(f"step-*/{file}")
        return any(step_of(path.parent) >= 10 and not (path.parent / COMPLETE).exists() for path in found)

    return now


def after_steps(run: RunFolder, steps: int) -> Callable[[Attempt], bool]:
    """When so many more steps are written down than are now."""
    before = len(run.metrics())
    return lambda attempt: len(run.metrics()) >= before + steps


def left(run: RunFolder) -> dict[str, object]:
    """What the dead left: the newest whole checkpoint, and files of one that is not."""
    newest = latest(run, STAGE)
    ruins = [folder for folder in run.path("checkpoints", STAGE).glob("step-*") if not (folder / COMPLETE).exists()]
    return {
        "whole": step_of(newest) if newest else 0,
        "ruins": {folder.name: sorted(path.name for path in folder.iterdir()) for folder in ruins},
    }


def main(recipe: Path, out: Path) -> None:
    told = {}
    whole = prepared(recipe, out, "null")
    assert attempt_at(whole, None)
    for way, file, steps in (("false", "common.pt", 3), ("true", "*.distcp", 7)):
        run, kills = prepared(recipe, out, way), []
        for moment in (partial(inside_a_save, run, file), partial(after_steps, run, steps)):
            ended = attempt_at(run, moment())
            kills.append({"ended": ended, **left(run)})
        assert attempt_at(run, None)
        starts = [event["from_step"] for each in run.attempts() for event in each.events() if event["kind"] == "engine"]
        told[way] = {"kills": kills, "starts": starts, "left": left(run)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
