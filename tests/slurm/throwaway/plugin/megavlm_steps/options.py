"""What the verb `steps` is told: how much work, how slow, and what goes wrong where."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Fault:
    """Fail with `code` after `step` steps, in attempt number `attempt` or in every one, on node `rank`."""

    code: int
    step: int
    attempt: int | None
    rank: int

    @classmethod
    def parse(cls, text: str) -> Fault:
        """CODE@STEP[@ATTEMPT][/RANK]; raises ConfigError."""
        found = re.fullmatch(r"(\d+)@(\d+)(?:@(\d+))?(?:/(\d+))?", text)
        if found is None:
            raise ConfigError(f"'{text}' is no fault", where="--fail", fix="write CODE@STEP[@ATTEMPT][/RANK]")
        code, step, attempt, rank = (int(part) if part else None for part in found.groups())
        return cls(code or 0, step or 0, attempt, rank or 0)

    def strikes(self, step: int, attempt: int, rank: int) -> bool:
        """Whether this is the moment."""
        return (step, rank) == (self.step, self.rank) and self.attempt in {None, attempt}


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line. Seconds are wall-clock, sizes are bytes; `every` 0 is never."""

    run: Path
    steps: int
    seconds: float
    save_every: int
    save_seconds: float
    save_bytes: int
    save_to: Path
    evaluate_every: int
    evaluate_seconds: float
    start_seconds: float
    faults: list[Fault]


def parse(argv: Sequence[str]) -> Options:
    """Read the words after `steps`."""
    parser = argparse.ArgumentParser(prog="megavlm steps", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one step")
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--save-seconds", type=float, default=0.0)
    parser.add_argument("--save-bytes", type=int, default=0)
    parser.add_argument("--save-to", type=Path, help="default: RUN/checkpoints/steps")
    parser.add_argument("--evaluate-every", type=int, default=0)
    parser.add_argument("--evaluate-seconds", type=float, default=0.0)
    parser.add_argument("--start-seconds", type=float, default=0.0, help="before the first step")
    parser.add_argument("--fail", action="append", default=[], metavar="CODE@STEP[@ATTEMPT][/RANK]")
    given = vars(parser.parse_args(argv))
    faults = [Fault.parse(text) for text in given.pop("fail")]
    save_to = given.pop("save_to") or given["run"] / "checkpoints" / "steps"
    return Options(**given, save_to=save_to, faults=faults)
