"""What to do after an attempt: a pure function of how it ended, of those before it, and of what is left to try with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from itertools import takewhile
from typing import Literal

from ..profile import Attempts

Action = Literal["stop", "retry", "leave"]  # for good; here and now; through the queue
TWICE = 2


class Verdict(StrEnum):
    """The classes of ended attempts."""

    FINISHED = "finished"
    REFUSED = "a check said no"
    USER_ERROR = "user error"
    NO_SPACE = "no space"
    SAVED = "saved"
    NODE_FAILURE = "node failure"
    PREFLIGHT = "preflight"  # too few nodes passed it
    HANG = "hang"
    CRASH = "crash"
    NOT_STARTED = "not started"  # the nodes have to be given back before anything began
    LOST = "lost"  # its supervisor went away with it: preempted, or its node died


FINAL = {Verdict.FINISHED, Verdict.REFUSED, Verdict.USER_ERROR, Verdict.NO_SPACE}


@dataclasses.dataclass(frozen=True)
class Ending:
    """How an attempt ended. `code`: the verb's exit code; `bad`: nodes to do without; `suspects`: nodes that hung."""

    verdict: Verdict
    code: int
    reason: str
    progress: bool = False
    bad: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Standing:
    """What is left: `usable` nodes of the allocation, `needed` ones, and whether someone wants us to go."""

    usable: tuple[str, ...]
    needed: int
    asked: bool = False  # the nodes are to be given back: time limit, preemption, a signal
    cancelled: bool = False  # a person said stop


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do. `exclude` are nodes that no later attempt of this job may use."""

    action: Action
    exit_code: int
    reason: str
    exclude: tuple[str, ...] = ()


def decide(ending: Ending, past: Sequence[Ending], standing: Standing, budget: Attempts) -> Decision:
    """The decision. `past`: the attempts since a person submitted the job, oldest first."""
    exclude = _exclude(ending, past)
    if ending.verdict in FINAL:
        return Decision("stop", _code(ending), ending.reason)
    if standing.cancelled:
        return Decision("stop", _code(ending), f"cancelled; {ending.reason}")
    if spent := _spent(ending, past, budget):
        return Decision("stop", _code(ending), f"{spent}; the last one: {ending.reason}")
    enough = len(set(standing.usable) - set(exclude)) >= standing.needed
    gives_back = ending.verdict in {Verdict.SAVED, Verdict.NOT_STARTED} or standing.asked
    return Decision("leave" if gives_back or not enough else "retry", _code(ending), ending.reason, exclude)


def _exclude(ending: Ending, past: Sequence[Ending]) -> tuple[str, ...]:
    """Nodes known to be bad, and those that hung for the second time."""
    hung = [node for one in [*past, ending] for node in one.suspects]
    return tuple(sorted({*ending.bad, *(node for node in ending.suspects if hung.count(node) >= TWICE)}))


def _spent(ending: Ending, past: Sequence[Ending], budget: Attempts) -> str | None:
    """Which budget this attempt used up, in words."""
    newest_first = [ending, *reversed(past)]
    idle = len(list(takewhile(lambda one: not one.progress, newest_first)))
    if idle >= budget.without_progress:
        return f"{idle} attempts in a row saved nothing (attempts.without_progress)"
    if len(newest_first) >= budget.most:
        return f"{len(newest_first)} attempts made (attempts.most)"
    return None


def _code(ending: Ending) -> int:
    """The job's exit code should it end here: what is not finished never looks like success."""
    return ending.code if ending.code or ending.verdict == Verdict.FINISHED else 1
