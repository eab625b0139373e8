"""Which trained weights a command means, and over how many processes to split them. Loads no torch."""

from __future__ import annotations

import argparse
import dataclasses

from megavlm.platform.errors import ConfigError

from ..checkpoints.listing import Source, resolve
from ..config import Parallel
from ..data.build import StageData
from ..layout import check_layout


@dataclasses.dataclass(frozen=True)
class Weights:
    """Plain data, so that it can be handed to other ranks."""

    source: str
    stage: str | None = None
    tp: int = 1
    pp: int = 1

    @classmethod
    def of(cls, args: argparse.Namespace) -> Weights:
        """What the arguments of `add_arguments` say."""
        return cls(args.source, args.stage, args.tp, args.pp)

    @property
    def parallel(self) -> Parallel:
        """The layout."""
        return Parallel(tp=self.tp, pp=self.pp)

    @property
    def ranks(self) -> int:
        """Processes."""
        return self.tp * self.pp

    def check(self) -> Source:
        """Where they are; raises ConfigError or InputError for what can be known to be wrong without torch."""
        for key in ("tp", "pp"):
            if getattr(self, key) < 1:
                raise ConfigError(f"--{key} {getattr(self, key)} is less than 1")
        source = resolve(self.source, self.stage)
        check_layout(StageData.of(source.recipe, source.stage).model, self.parallel)
        return source


def add_arguments(p: argparse.ArgumentParser) -> None:
    """RUN|CKPT, --stage, --tp and --pp."""
    p.add_argument("source", metavar="RUN|CKPT", help="a run (folder or name), or a checkpoint's folder in one")
    p.add_argument("--stage", help="stage of the run (default: the last trained one)")
    p.add_argument("--tp", type=int, default=1, help="split every layer over this many devices (default 1)")
    p.add_argument("--pp", type=int, default=1, help="spread the layers over this many groups of devices (default 1)")
