"""What a trace tells. Loads no torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

Kind = Literal["weights", "gradients", "optimizer", "activations", "buffers"]
Phase = Literal["build", "look", "schedule", "learn", "finish", "update"]


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment of a phase at which most bytes are alive: in all, by kind, and the largest causes (module, bytes)."""

    phase: Phase
    total: int
    kinds: dict[Kind, int]
    causes: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class RankTrace:
    """One rank's step. parameters: numbers it holds. standing: bytes alive between steps, by kind."""

    rank: int
    pipeline_stage: int
    parameters: int
    standing: dict[Kind, int]
    peaks: tuple[Peak, ...]
    seconds: float

    @property
    def peak(self) -> Peak:
        """The fullest moment of the step."""
        return max(self.peaks, key=lambda peak: peak.total)
