"""NVLM's throughput (arXiv 2409.11402, table 3) by the planner's formulas. Loads no torch.

Yi-34B trained whole, on 128 H100, batch 256, tensor parallel 8, images of 6 tiles and a thumbnail. The table states no
pipeline; the recipes have table 11's: 4 stages for D.
"""

from __future__ import annotations

import dataclasses

from megavlm.platform.config import load_recipe

from .estimate import Task, task_of
from .hardware import find_gpu
from .rates import Runner, constants
from .timing import stage_works, step_time

PUBLISHED = {"x": 5.063, "h": 7.071, "d": 8.885}  # seconds of a step
TOKENS = {"x": 1024, "h": 1280, "d": 2816}
BATCH, GPUS, TILES = 256, 128, 7


def seconds(variant: str, *overrides: str) -> float:
    """Of a step of NVLM-X, -H or -D with Yi-34B, one sample in each sequence as the published script has it."""
    task = _task(variant, *overrides)
    return step_time(task.job(find_gpu("h100"), GPUS, task.layout)).total


def staged(variant: str, pp: int, *overrides: str) -> float:
    """The same as published code does it: in `pp` stages, the first of which encodes each micro-batch's tiles.

    Nothing is padded, and gradients are summed when all is done.
    """
    task = _task(variant, unpadded(variant), *overrides)
    parallel = task.layout.parallel.model_copy(update={"pp": pp, "overlap": False})
    job = task.job(find_gpu("h100"), GPUS, dataclasses.replace(task.layout, parallel=parallel))
    time, stages = step_time(job), [stage.work.total for stage in stage_works(Runner(job, constants()))]
    groups = GPUS / parallel.tp
    stages[0] += time.tower * groups / BATCH  # of one sample's tiles on its own group
    return job.micro_batches * max(stages) + sum(stages) - max(stages) + time.pipeline + time.data + time.update


def unpadded(variant: str) -> str:
    """The override that gives a variant the sequence which the table states."""
    return f"stages.sft.mixture.sequence_length={TOKENS[variant]}"


def _task(variant: str, *overrides: str) -> Task:
    whole = [f"stages.sft.mixture.batch.size={BATCH}", "stages.sft.mixture.pack=false", *overrides]
    return task_of(load_recipe(f"nvlm-{variant}-34b", whole), "sft", TOKENS[variant], TILES)
