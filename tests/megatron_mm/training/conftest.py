"""The command line as a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def megavlm() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`megavlm("train", ...)` starts the command line; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "megavlm.platform.cli", *words]
        env = os.environ | {"OMP_NUM_THREADS": "1", "MEGAVLM_QUIET": "1"}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
