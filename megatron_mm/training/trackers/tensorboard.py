"""TensorBoard: RUN/tensorboard/STAGE, a scalar for every figure of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from megavlm.platform.config import Config
from megavlm.platform.runs import RunFolder

from .base import Tracker, require


class TensorBoard(Config):
    """Look at it with `tensorboard --logdir RUN/tensorboard`."""

    name: Literal["tensorboard"] = "tensorboard"

    def check(self) -> None:
        """Raise MissingPackage where the package is not installed."""
        require("tensorboard", self.name)

    def open(self, run: RunFolder, stage: str, step: int) -> Tracker:
        """Go on behind `step`: what an earlier attempt wrote of later steps is hidden from then on."""
        from torch.utils.tensorboard import SummaryWriter

        return _Scalars(SummaryWriter(str(run.path("tensorboard", stage)), purge_step=step + 1))


class _Scalars:
    def __init__(self, writer: object) -> None:
        self._writer: object = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._writer.close()  # type: ignore[attr-defined]
