"""Starts a module of ours on several ranks of this machine, through torchrun. Loads no torch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO, Any

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.processes import die_with, environment

GRACE_SECONDS = 20.0
DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # as megatron-core advises, so that collectives overlap with kernels
}


@contextlib.contextmanager
def started(module: str, words: Sequence[str], ranks: int, output: IO[Any]) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun with `python -m module words` on `ranks` processes, printing to `output`; ended with the context.

    torchrun picks a free port, and ends all ranks when one fails. It dies when this process does.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    process = subprocess.Popen(
        [*torchrun, "-m", module, *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=DEFAULTS | environment(ranks),
        start_new_session=True,  # an interrupt of the terminal is ours to pass on
        preexec_fn=partial(die_with, os.getpid()),
    )
    try:
        yield process
    finally:
        _end(process)


def run_on_ranks(module: str, words: Sequence[str], ranks: int) -> None:
    """Start `module` on `ranks` processes and wait; what they print goes to stderr.

    Raises MegaVLMError when one of them fails.
    """
    with started(module, words, ranks, output=sys.stderr) as process:
        code = process.wait()
    if code:
        raise MegaVLMError(
            f"a rank of {module.rpartition('.')[0]} failed with exit code {code}", fix="its message stands above"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """After an interrupt: torchrun ends its workers on TERM; what does not end in time is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # its workers die with it
