"""Starts a machine's ranks, shows how far they are, and passes on the wish to save. Loads no torch.

One machine leads: it tells the attempt's story. The others run ranks and end when it does.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from megavlm.platform.errors import ConfigError, MegaVLMError
from megavlm.platform.nodes import Place
from megavlm.platform.runs import Attempt, RunFolder, SaveRequest
from megavlm.platform.runs.attempt import VARIABLE

from ..config import Stages
from ..torchrun import started
from .shown import Follower, Shown
from .stalls import suspects
from .watch import Watch

WORKER = "megavlm.megatron_mm.training.worker"
POLL_SECONDS = 0.2


def lead(
    run: RunFolder,
    attempt: Attempt,
    stages: Stages,
    names: Sequence[str],
    nproc: int,
    here: Place,
    request: SaveRequest,
) -> int | None:
    """Train `names` on `nproc` processes here and on as many of every other machine.

    Returns the step saved on request, or None when there was no request. Raises MegaVLMError with the first failing
    rank's own message.
    """
    metrics, shown = Follower(run.path("metrics.jsonl")), Shown(stages)
    watch = Watch(attempt, ("failed",), here.nodes)
    with _ranks(run, attempt, names, nproc, here) as process:
        while process.poll() is None and not watch.over():
            time.sleep(POLL_SECONDS)
            if request.requested:
                attempt.request_save()  # the ranks mind no signal
            for line in metrics.lines():
                shown.update(line)
    for line in metrics.lines():
        shown.update(line)
    shown.stop()
    saved = next((event["step"] for event in attempt.events() if event["kind"] == "saved_on_request"), None)
    if process.returncode and saved is None:
        raise failure(attempt, process.returncode)
    return saved


def follow(run: RunFolder, nproc: int, here: Place) -> int:
    """Run the ranks of a machine that does not lead, until they or the leading machine's are over.

    Returns 0 when the ranks ended well, or were not wanted, and 1 otherwise.
    """
    attempt = shared_attempt(run)
    watch = Watch(attempt, ("failed", "ended"), here.nodes)
    with SaveRequest() as request, _ranks(run, attempt, [], nproc, here) as process:
        while process.poll() is None and not watch.over():
            time.sleep(POLL_SECONDS)
            if request.requested and not attempt.save_requested:
                attempt.request_save()
    return 0 if process.returncode == 0 or watch.ended_well() else 1


def shared_attempt(run: RunFolder) -> Attempt:
    """The attempt that the machines share; raises ConfigError when the environment names none of this run."""
    given = os.environ.get(VARIABLE)
    if not given or Path(given).resolve().parent != run.path("attempts").resolve():
        raise ConfigError(
            f"several machines, and {VARIABLE}={given or ''} is no attempt of {run.root}",
            where="the environment",
            fix=f"make {run.root}/attempts/NN and set {VARIABLE} to it on every machine; `megavlm submit` does",
        )
    return run.current_attempt()


@contextlib.contextmanager
def _ranks(
    run: RunFolder, attempt: Attempt, names: Sequence[str], nproc: int, here: Place
) -> Iterator[subprocess.Popen[bytes]]:
    """This machine's torchrun; its own words go to torchrun-N.log, N being the machine's number."""
    path, variables = attempt.logs / f"torchrun-{here.rank}.log", {VARIABLE: str(attempt.root.resolve())}
    with path.open("ab") as log, started(WORKER, [str(run.root), *names], nproc, log, here, variables) as process:
        yield process
    if process.returncode:
        tell_killed(attempt, path, first_rank=here.rank * nproc)


def tell_killed(attempt: Attempt, log: Path, first_rank: int) -> None:
    """A `failed` event with its `signal` for every rank of this machine that was killed, and could tell nothing."""
    for signal, local in re.findall(r"failed \(exitcode: -(\d+)\) local_rank: (\d+)", log.read_text(errors="replace")):
        rank = first_rank + int(local)
        told = {
            "what": f"rank {rank} on {socket.gethostname()} was killed by signal {signal}",
            "where": str(attempt.log_path(rank)),
            "fix": _after(signal, attempt),
        }
        attempt.event("failed", rank=rank, **told, exit_code=1, signal=int(signal))


def _after(signal: str, attempt: Attempt) -> str | None:
    """What to look at. NCCL's watchdog aborts a rank that waited too long for another."""
    if signal == "9":
        return "see whether the machine ran out of memory: dmesg | grep -i oom"
    return f"if it waited for another rank: {suspects(attempt)}" if signal == "6" else None


def failure(attempt: Attempt, code: int) -> MegaVLMError:
    """The first error a rank reported, as it was raised there. One that was killed comes before it."""
    failed = [event for event in attempt.events() if event["kind"] == "failed"]
    told = next(iter(sorted(failed, key=lambda event: "signal" not in event)), None)
    if told is None:
        return MegaVLMError(f"a rank died (torchrun's exit code {code})", where=str(attempt.logs), fix="read its log")
    error = MegaVLMError(told["what"], where=told["where"] or str(attempt.log_path(told["rank"])), fix=told["fix"])
    error.exit_code = told["exit_code"]
    return error
