"""What torchrun runs on every rank: gives a sign of life, then loads torch and works, and tells what went wrong.

It loads torch only inside `main`: a rank is heard of from its first second, an import that fails is told like any other
error, and the processes that megatron-core starts to write a checkpoint, which import the main module, start fast.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from megavlm.platform.config import load_recipe
from megavlm.platform.errors import MegaVLMError
from megavlm.platform.processes import die_with
from megavlm.platform.runs import Attempt, RunFolder, SaveRequest

from ..backend.deterministic import variables
from ..config import Stages
from .pulse import Pulse


def main(argv: Sequence[str]) -> int:
    """`worker RUN STAGE...`; returns the exit code, after telling the attempt what went wrong."""
    die_with(os.getppid())
    run = RunFolder.open(argv[0])
    attempt = run.current_attempt()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    _log_to(attempt, rank)
    pulse = Pulse(attempt, rank, ranks)
    pulse("start")
    try:
        os.environ.update(_variables(run))  # before torch is loaded, and CUDA with it
        from .work import work

        work(run, attempt, argv[1:], pulse, _wish(attempt, rank))
        return 0
    except Exception as error:
        traceback.print_exc()
        _tell(attempt, rank, error)
        return 1


def _variables(run: RunFolder) -> dict[str, str]:
    stages: Stages = load_recipe(str(run.path("config.yaml"))).section("stages")
    return variables(stages, os.environ)


def _wish(attempt: Attempt, rank: int) -> Callable[[], bool]:
    """Whether someone asked to save: one rank's look into the folder is enough for all. Signals are heard above."""
    request = SaveRequest(attempt)
    return lambda: rank == 0 and request.requested


def _log_to(attempt: Attempt, rank: int) -> None:
    """Everything this process prints, C libraries included, goes to the rank's own log."""
    log = attempt.log_path(rank).open("ab", buffering=0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


def _tell(attempt: Attempt, rank: int, error: Exception) -> None:
    """What went wrong, for `train` to raise again."""
    if not isinstance(error, MegaVLMError):
        error = MegaVLMError(f"{type(error).__name__}: {error}", fix=f"read {attempt.log_path(rank)}")
    told = {"what": error.what, "where": error.where, "fix": error.fix, "exit_code": error.exit_code}
    attempt.event("failed", rank=rank, **told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
