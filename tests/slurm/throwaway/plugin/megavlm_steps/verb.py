"""`megavlm steps RUN`: what a training looks like to a launcher, without torch.

It keeps the run folder's contract: attempts, events, heartbeats, metrics, saves on request, exit codes. The last line
of metrics.jsonl shows whether any sample was lost or seen twice on the way there.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence

from megavlm.platform.errors import CheckFailed, InputError, MegaVLMError
from megavlm.platform.nodes import Place, place
from megavlm.platform.runs import Attempt, RunFolder, SaveRequest

from .chain import Chain, load, save, share
from .group import Group
from .options import Options, parse

STAGE = "steps"
ERRORS = {1: MegaVLMError, 2: InputError, 3: CheckFailed}


def main(argv: Sequence[str]) -> int:
    """0 done, 4 saved on request, and whatever `--fail` says."""
    options, here = parse(argv), place()
    if not here.leads:
        run = RunFolder(options.run)
        return Worker(options, here, run, run.current_attempt()).work()
    config = {"verb": "steps", "steps": options.steps}
    run = RunFolder.create(options.run, config, {}, ["megavlm", "steps", *argv])
    if run.finished:
        print(f"{run.name} is finished", file=sys.stderr)
        return 0
    with run.new_attempt() as attempt:
        attempt.exit_code = Worker(options, here, run, attempt).work()
        return attempt.exit_code


class Worker:
    """One node's part."""

    def __init__(self, options: Options, here: Place, run: RunFolder, attempt: Attempt) -> None:
        self._options, self._place, self._run, self._attempt = options, here, run, attempt
        self._chain = load(options.save_to)

    def work(self) -> int:
        """Step until the end, or until somebody on any node asks for a save."""
        try:
            with SaveRequest(self._attempt) as request:
                self._pause("start", self._options.start_seconds)
                self._group = Group(self._place)
                self._chain = Chain(**self._group.broadcast(dataclasses.asdict(self._chain)))
                return self._steps(request)
        except MegaVLMError as error:
            self._tell(error)
            raise

    def _steps(self, request: SaveRequest) -> int:
        while True:
            self._strike()
            asked = any(self._group.gather(request.requested))
            more = self._group.broadcast(self._chain.step < self._options.steps and not asked)
            if not more:
                return self._end()
            self._step()
            if _due(self._chain.step, self._options.evaluate_every):
                self._pause("evaluate", self._options.evaluate_seconds)
                self._beat("step")
            if _due(self._chain.step, self._options.save_every):
                self._save()

    def _step(self) -> None:
        """Take the samples of all nodes; only node 0 knows the digest, the others only count."""
        begun, step = time.time(), self._chain.step
        time.sleep(self._options.seconds)
        mine = share(step, self._place.rank, self._place.nodes)
        samples = sorted(sample for part in self._group.gather(mine) for sample in part)
        self._chain = self._chain.after(samples)
        if self._place.leads:
            self._write_metrics(samples, time.time() - begun)
        self._beat("step")

    def _write_metrics(self, samples: list[int], seconds: float) -> None:
        line = {"stage": STAGE, "step": self._chain.step, "loss": self._chain.loss, "samples": samples}
        times = {"seconds": round(seconds, 4), "waited": 0.0, "time": round(time.time(), 3)}
        self._run.append_metrics(line | times | {"attempt": self._attempt.number})

    def _end(self) -> int:
        self._save()
        done = self._chain.step >= self._options.steps
        if self._place.leads:
            self._run.mark_finished() if done else self._run.mark_saved(self._chain.step)
        return 0 if done else 4

    def _save(self) -> None:
        """Node 0 saves, the others wait for it."""
        begun = time.time()
        self._pause("save", self._options.save_seconds if self._place.leads else 0)
        if self._place.leads:
            try:
                save(self._options.save_to, self._chain, self._options.save_bytes)
            except OSError as error:
                fix = "make room there; the last save is untouched"
                raise MegaVLMError(
                    f"cannot save: {error.strerror}", where=str(self._options.save_to), fix=fix
                ) from None
            seconds = round(time.time() - begun, 3)
            self._attempt.event("saved", stage=STAGE, step=self._chain.step, seconds=seconds)
        self._group.broadcast("saved")
        self._beat("step")

    def _pause(self, doing: str, seconds: float) -> None:
        self._beat(doing)
        time.sleep(seconds)

    def _beat(self, doing: str) -> None:
        self._attempt.heartbeat(self._place.rank, self._chain.step, doing)

    def _strike(self) -> None:
        """Fail when the command line says so."""
        for fault in self._options.faults:
            if fault.strikes(self._chain.step, self._attempt.number, self._place.rank):
                _fail(fault.code, self._chain.step)

    def _tell(self, error: MegaVLMError) -> None:
        fields = {"what": error.what, "where": error.where, "fix": error.fix, "exit_code": error.exit_code}
        self._attempt.event("failed", rank=self._place.rank, **fields)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _fail(code: int, step: int) -> None:
    """End by the signal that a code above 128 stands for, without a word, or by an error."""
    if code > 128:
        os.kill(os.getpid(), code - 128)
        signal.pause()
    raise ERRORS[code](f"failed as told, with {code} at step {step}", where="--fail", fix="leave --fail away")
