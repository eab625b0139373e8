"""Executors: who runs a list of commands, and where. Tasks are command lines, so nothing of ours is ever pickled."""

from __future__ import annotations

from ..registry import Registry
from .protocol import WORKER, Executor, Job, TaskResult, failures, make

EXECUTORS = Registry(
    "executor",
    {
        "local": "megavlm.platform.executor.local:LocalExecutor",
        "in_process": "megavlm.platform.executor.in_process:InProcessExecutor",
        "slurm": "megavlm.slurm.arrays.executor:SlurmArrayExecutor",
    },
)

__all__ = ["EXECUTORS", "WORKER", "Executor", "Job", "TaskResult", "failures", "make"]
