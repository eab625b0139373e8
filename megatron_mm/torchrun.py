"""Starts a module of ours on the ranks of one machine, alone or among several, through torchrun. Loads no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.nodes import Place
from megavlm.platform.processes import die_with, environment
from megavlm.platform.runs.signals import ASKING

GRACE_SECONDS = 20.0
RANKS_GRACE_SECONDS = 5  # what torchrun gives the other ranks when one failed
MEETING_SECONDS = 7 * 24 * 3600  # machine 0 may have to pack for hours before it comes
DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # as megatron-core advises, so that collectives overlap with kernels
}


@contextlib.contextmanager
def started(
    module: str,
    words: Sequence[str],
    ranks: int,
    output: IO[Any],
    here: Place | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun with `python -m module words` on `ranks` processes, printing to `output`; ended with the context.

    `here` is this machine among several, which all start the same; without it torchrun picks a free port.
    torchrun ends the machine's ranks when one of them fails, and dies when this process does. Neither it nor anything
    it starts minds a signal that asks for a save: the process that called this hears it, and tells the ranks.
    """
    options = [*_meeting(here or Place()), f"--nproc-per-node={ranks}", f"--shutdown-timeout={RANKS_GRACE_SECONDS}"]
    options.append("--signals-to-handle=SIGINT")  # by default it takes TERM for its own end, and sends it to the ranks
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "-m", module, *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=DEFAULTS | environment(ranks) | dict(variables or {}),
        start_new_session=True,  # an interrupt of the terminal is ours to pass on
        preexec_fn=partial(_prepare, os.getpid()),
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


def _meeting(here: Place) -> list[str]:
    if here.alone:
        return ["--standalone"]
    meeting = [f"--master-addr={here.host}", f"--master-port={here.port}", f"--rdzv-conf=timeout={MEETING_SECONDS}"]
    return [f"--nnodes={here.nodes}", f"--node-rank={here.rank}", *meeting]


def _prepare(parent: int) -> None:
    """In the new process, before it becomes torchrun. What is ignored here stays so in all that it starts.

    A scheduler that asks for a save sends its signal to every process of a job step. That must end neither torchrun,
    nor a rank that still imports torch, nor the processes that megatron-core starts to write a checkpoint.
    """
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)


def _end(process: subprocess.Popen[bytes]) -> None:
    """After an interrupt: torchrun passes it on to its workers; what does not end in time is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # its workers die with it
            process.wait()
