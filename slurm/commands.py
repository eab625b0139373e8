"""Slurm's commands: words in, text out; no shell in between, and little of the caller's environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from megavlm.platform.errors import MegaVLMError, MissingPackage

SECONDS = 60.0
# All that sbatch and its jobs get of the caller's environment. Slurm stores a job's environment, and may show it to
# others: tokens and keys must not be in it. A job that submits jobs must not hand its own SLURM_* on either.
KEPT = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "SLURM_CONF", "TZ", "USER")


class SlurmError(MegaVLMError):
    """A command of Slurm failed; `what` holds its own words."""


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The short list of the caller's environment, and `extra`."""
    return {name: os.environ[name] for name in KEPT if name in os.environ} | dict(extra or {})


def run(*words: str, text: str | None = None, seconds: float = SECONDS, extra: Mapping[str, str] | None = None) -> str:
    """The standard output of one command of Slurm, given `text` on its standard input.

    Raises MissingPackage when the command is not there, SlurmError when it fails or takes longer than `seconds`.
    """
    done = attempt(*words, text=text, seconds=seconds, extra=extra)
    if done.returncode:
        raise SlurmError(f"{words[0]} failed: {done.stderr.strip() or done.returncode}", where=" ".join(words))
    return done.stdout


def attempt(
    *words: str, text: str | None = None, seconds: float = SECONDS, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As `run`, for callers to whom a failure is an answer."""
    if shutil.which(words[0]) is None:
        fix = "run this where Slurm's client commands are installed (apt-get install slurm-client), or extend PATH"
        raise MissingPackage(f"'{words[0]}' is not on this machine", where="PATH", fix=fix)
    try:
        return subprocess.run(
            words, input=text, capture_output=True, text=True, timeout=seconds, env=clean_environment(extra)
        )
    except subprocess.TimeoutExpired:
        fix = "see whether slurmctld answers: scontrol ping"
        raise SlurmError(f"{words[0]} gave no answer in {seconds:.0f} s", where=" ".join(words), fix=fix) from None
