"""Ranks for the tests, with the environment that torchrun gives them, and without torchrun's own start.

They are spawned, not forked from a process that has loaded torch: one such start did not end in 200 seconds.
torchrun itself is what tests of `megavlm train` and its like start.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

HOST = "127.0.0.1"
LAST_WORDS_SECONDS = 3  # for the other ranks, when one has failed


def load(script: Path) -> ModuleType:
    """The script as a module: what its ranks do, for the test to do in one process."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_on_ranks(script: Path, processes: int, *words: object, seconds: float = 200) -> None:
    """`torchrun --nproc-per-node PROCESSES SCRIPT WORDS`, all on this machine.

    Raises ProcessRaisedException with the traceback of the first rank that fails, once the others are ended, and
    TimeoutError after `seconds`.
    """
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    environment = {**os.environ, **_torchruns(processes, store.port)}
    ranks = start_processes(
        _rank, (environment, str(script), [str(word) for word in words]), processes, False, start_method="spawn"
    )
    deadline = time.monotonic() + seconds
    try:
        while not ranks.join(deadline - time.monotonic(), grace_period=LAST_WORDS_SECONDS):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{script.name} on {processes} ranks took more than {seconds} s")
    finally:
        for process in ranks.processes:
            process.kill()


def _torchruns(processes: int, port: int) -> dict[str, str]:
    """The variables that torchrun gives to every rank alike; it, too, keeps the store of the ranks' addresses."""
    return {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": str(True),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
    }


def _rank(number: int, environment: Mapping[str, str], script: str, words: Sequence[str]) -> None:
    """In the new process."""
    os.environ.clear()
    os.environ.update({**environment, "RANK": str(number), "LOCAL_RANK": str(number)})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.argv = [script, *words]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
