"""One step's line of metrics.jsonl. Loads no torch."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig, Stage
from ..data.amounts import Amounts
from .flops import peak_tflops, step_flops, visual_tokens

if TYPE_CHECKING:
    from .ranks import Ranks
    from .step import StepResult

WINDOW = 50  # steps that the pace is taken from


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where and when a step was: `step` counts from 1, `seconds` is the step alone, `waited` the wait for its data."""

    step: int
    rate: float
    seconds: float
    waited: float
    attempt: int


class Meter:
    """Turns what a step did into figures: of all ranks together, and per device where the name says so."""

    def __init__(
        self, name: str, stage: Stage, model: ModelConfig, world: int, device: str, memory: float | None
    ) -> None:
        self.peak = peak_tflops(device)  # TFLOP/s, None where it is not known: then there is no MFU
        self._name, self._stage, self._model, self._world, self._memory = name, stage, model, world, memory
        self._ends: deque[float] = deque(maxlen=WINDOW)

    def line(self, at: Moment, result: StepResult, of: Amounts | None, ranks: Ranks) -> dict[str, Any]:
        """Everything known of the step under stable keys; what is not known is None, and never NaN."""
        self._ends.append(time.monotonic())
        told = {"stage": self._name, "step": at.step, "loss": finite(result.loss)}
        told |= {name: finite(value) for name, value in result.parts.items()}
        told |= {"grad_norm": finite(result.grad_norm), "lr": at.rate, "updated": result.updated}
        told |= {"tokens": result.tokens, "targets": result.targets}
        told |= {"seconds": round(at.seconds, 4), "waited": round(at.waited, 4), "eta": self._eta(at.step)}
        told |= self._pace(at.seconds + at.waited, result.tokens, of) | self._packing(result, of)
        told |= {"memory": round(ranks.memory, 3), "memory_of": self._memory and round(self._memory, 1)}
        told |= {"slowest_rank": ranks.slowest, "slowness": round(ranks.slowness, 3)}
        return told | {"attempt": at.attempt, "time": round(time.time(), 3)}

    def _pace(self, seconds: float, tokens: int, of: Amounts | None) -> dict[str, Any]:
        """tokens/s and model FLOP/s of one device; MFU is the share of the device's dense bf16 peak."""
        flops = None if of is None else step_flops(self._model, self._stage.train, of) / self._world / seconds
        mfu = flops / (self.peak * 1e12) if flops and self.peak else None
        return {
            "tokens_per_second_per_device": round(tokens / self._world / seconds, 1),
            "tflops_per_device": flops and float(f"{flops / 1e12:.4g}"),
            "mfu": mfu and round(mfu, 4),
        }

    def _packing(self, result: StepResult, of: Amounts | None) -> dict[str, Any]:
        """What the positions of the global batch were spent on."""
        if of is None:
            return {}
        visual, beside = visual_tokens(self._model, of), of.context_tiles * self._model.tokens_per_tile
        return {
            "batch": of.batch,
            "samples": of.samples,
            "tiles": of.tiles,
            "visual_tokens": visual,
            "text_tokens": of.tokens - (visual - beside),
            "padding": round(1 - of.tokens / of.positions, 5),
            "learnt": round(result.targets / of.positions, 5),
        }

    def _eta(self, step: int) -> float | None:
        """Seconds until the stage's last step, at the pace of late: saves and waiting included."""
        if len(self._ends) < 2:
            return None
        pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return round(pace * (self._stage.steps - step), 1)


def finite(value: float) -> float | None:
    """The value, or None for one that JSON has no word for."""
    return value if math.isfinite(value) else None
