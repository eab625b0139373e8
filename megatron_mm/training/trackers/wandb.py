"""Weights & Biases: one of its runs for each stage. The key comes from the environment or `wandb login`, never a file
of ours; WANDB_MODE=offline writes into RUN/wandb alone, for `wandb sync` to send later."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Literal

from megavlm.platform.config import Config
from megavlm.platform.runs import RunFolder

from .base import Tracker, require


class WandB(Config):
    """Where the figures go: a project, and an entity where it is not the account's own."""

    name: Literal["wandb"] = "wandb"
    project: str = "megavlm"
    entity: str | None = None

    def check(self) -> None:
        """Raise MissingPackage where the package is not installed."""
        require("wandb", self.name)

    def open(self, run: RunFolder, stage: str, step: int) -> Tracker:
        """Go on in the run that an earlier attempt began. W&B drops figures of steps it has seen already."""
        import wandb

        made = zlib.crc32(run.path("provenance.json").read_bytes())
        return _Run(
            wandb.init(
                project=self.project,
                entity=self.entity,
                dir=str(run.root),
                id=f"{run.name}-{stage}-{made:08x}",
                name=f"{run.name}/{stage}",
                group=run.name,
                config=run.config(),
                resume="allow",
                settings=wandb.Settings(console="off", save_code=False),  # the ranks have their own logs
            )
        )


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
