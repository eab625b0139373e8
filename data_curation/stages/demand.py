"""What a stage asks for at a given size: work, memory, and how much it can keep. `curate pilot` forecasts from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Size:
    """A run as one stage sees it; `notes` are what the ledger says of a run that was, empty of one that is to be."""

    images: int  # that the stage receives
    shards: int  # raw ones
    clusters: int = 1  # of the finest level
    dimension: int = 0  # of the features; 0 where nobody knows
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Work:
    """`amount` operations, shared by `tasks` tasks that may run side by side."""

    amount: float
    tasks: int = 1


@dataclasses.dataclass(frozen=True)
class Demand:
    """Seconds grow with each kind of work, at a rate of its own; memory with the rows that one task holds.

    `work`: kind -> how much. The kinds named in pilot/trials.py are timed by themselves, as the full run will do them;
    all others are told apart from what is paid once by running two sizes, which only works for one of them per stage.
    `rows`: samples, or what is as large as one, that a task holds at once; what one costs is measured.
    `stated`: bytes of one task's memory that are known by arithmetic, being too few to be seen in a pilot.
    `rounds`: how many times tasks wait for all before them, and workers start anew.
    `most`: images that it can keep at all. `devices`: GPUs that one worker uses, where it uses any.
    """

    work: Mapping[str, Work]
    rows: float
    stated: float = 0.0
    rounds: int = 1
    most: int | None = None
    devices: int = 1
