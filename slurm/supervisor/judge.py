"""From the traces of an ended attempt to its class."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .history import made_progress
from .policy import Ending, Verdict
from .watch import Silence

Event = Mapping[str, Any]
SPEAKING = {0: Verdict.FINISHED, 2: Verdict.USER_ERROR, 3: Verdict.REFUSED, 4: Verdict.SAVED, 5: Verdict.REFUSED}
FULL = re.compile(r"no space left on device|disk quota exceeded|ENOSPC|EDQUOT|\[Errno (?:28|122)\]", re.IGNORECASE)
CUT_OFF = re.compile(
    r"^(?:srun: .*(?:step aborted|forcing job termination|force terminated)|slurmstepd\S*: .*CANCELLED AT)",
    re.IGNORECASE | re.MULTILINE,
)
PROBE_BYTES = 1 << 20
LONGEST = 300  # characters of a log that a reason holds
NAMED = 4  # of many suspects, how many a reason names


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of an ended attempt.

    `code` is srun's exit code; `saved` the step of the run's answer to a wish to save; `room` whether its disk takes a
    megabyte more; `dead` the nodes that answer no more; `refused` why Slurm creates no job step; `suspects` rank, node
    and why of those that hang.
    """

    code: int
    events: Sequence[Event]
    saved: int | None = None
    room: bool = True
    dead: tuple[str, ...] = ()
    refused: str = ""
    silence: Silence | None = None
    suspects: Sequence[Mapping[str, Any]] = ()
    log: str = ""


def judge(facts: Facts) -> Ending:
    """The attempt's class. The verb's own word comes first, then what was seen from outside."""
    code = verb_code(facts)
    verdict = _verdict(code, facts)
    nodes = tuple(sorted({one["node"] for one in facts.suspects} - {None})) if verdict == Verdict.HANG else ()
    return Ending(
        verdict=verdict,
        code=4 if verdict == Verdict.SAVED else code,
        reason=_reason(verdict, code, facts),
        progress=made_progress(facts.events),
        bad=facts.dead,
        suspects=nodes,
    )


def verb_code(facts: Facts) -> int:
    """What the verb ended with: the leading node's last word, else srun's code.

    An attempt that ended well may still be followed by a check that says no. srun says 0 of a step that was cut off
    together with itself, as at the time limit: who began with a word ends with one, and srun tells when it ends a step.
    """
    ended = next((event for event in reversed(facts.events) if event["kind"] == "ended"), None)
    if ended is not None:
        return facts.code if ended["exit_code"] == 0 and facts.code in {3, 5} else int(ended["exit_code"])
    began = any(event["kind"] == "started" for event in facts.events)
    cut_off = facts.code == 0 and (began or CUT_OFF.search(facts.log))
    return 128 + signal.SIGTERM if cut_off else facts.code


def _verdict(code: int, facts: Facts) -> Verdict:
    if code == 0 and facts.dead and not any(event["kind"] == "ended" for event in facts.events):
        return Verdict.NODE_FAILURE  # the tasks that srun could still hear ended well
    if code in SPEAKING and not (code == 2 and _is_full(facts)):
        return SPEAKING[code]
    if facts.saved is not None and facts.saved in saved_steps(facts.events):
        return Verdict.SAVED  # what was asked for is done, however it ended after that
    if facts.dead:
        return Verdict.NODE_FAILURE
    if facts.silence:
        return Verdict.HANG
    if facts.refused:
        return Verdict.NOT_STARTED
    return Verdict.NO_SPACE if _is_full(facts) else Verdict.CRASH


def _is_full(facts: Facts) -> bool:
    return not facts.room or bool(FULL.search(told(facts.events)))


def _reason(verdict: Verdict, code: int, facts: Facts) -> str:
    if verdict == Verdict.NODE_FAILURE:
        return f"no answer from {', '.join(facts.dead)}"
    if verdict == Verdict.HANG and facts.silence:
        return f"at step {facts.silence.step}, silent for {facts.silence.seconds:.0f} s; {_named(facts.suspects)}"
    if verdict == Verdict.FINISHED:
        return "nothing is left to do"
    if verdict == Verdict.SAVED:
        steps = saved_steps(facts.events)
        return f"at step {steps[-1]}" if steps else "by its exit code"
    said = told(facts.events) or facts.refused or f"{in_words(code)}; {_last_line(facts.log) or 'no last words'}"
    fix = "; free space, then `megavlm requeue RUN`" if verdict == Verdict.NO_SPACE else ""
    return f"{said}{fix}"


def saved_steps(events: Sequence[Event]) -> list[int]:
    """The steps that an attempt saved; other jobs of the run may save others at the same time."""
    return [event["step"] for event in events if event["kind"] == "saved" and "step" in event]


def _named(suspects: Sequence[Mapping[str, Any]]) -> str:
    if not suspects:
        return "no rank differs from the others"
    names = [f"rank {one['rank']} on {one['node'] or 'an unknown node'} ({one['why']})" for one in suspects[:NAMED]]
    more = [f"{len(suspects) - NAMED} more"] if len(suspects) > NAMED else []
    return f"suspected: {', '.join([*names, *more])}"


def told(events: Sequence[Event]) -> str:
    """The first error that a rank told, else the one that ended the attempt, in one line; empty without one."""
    failed = min((e for e in events if e["kind"] == "failed"), key=lambda event: event["time"], default=None)
    if failed:
        return "; ".join(str(failed[key]) for key in ("what", "where", "fix") if failed.get(key))
    return next((" ".join(event["error"].split()) for event in events if event.get("error")), "")


def in_words(code: int) -> str:
    """An exit code for people."""
    if code <= 128:
        return f"exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
    return f"exit code {code} ({name}{', perhaps out of memory' if name == 'SIGKILL' else ''})"


def _last_line(log: str) -> str:
    """Of the tasks rather than of srun, which only says that it ended them."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    tasks = [line for line in lines if not line.startswith(("srun:", "slurmstepd"))]
    return (tasks or lines or [""])[-1][:LONGEST]


def has_room(folder: Path) -> bool:
    """Whether a megabyte can be written there: quotas show nowhere else."""
    path = folder / f".room-{os.getpid()}"
    try:
        with path.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        return True
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
