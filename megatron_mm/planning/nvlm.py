"""NVLM's throughput (arXiv 2409.11402, table 3) by the planner's formulas. Loads no torch.

Yi-34B trained whole, on 128 H100, batch 256, tensor parallel 8, images of 6 tiles and a thumbnail. The table states no
pipeline; the recipes have table 11's: 4 stages for D.
"""

from __future__ import annotations

from megavlm.platform.config import load_recipe

from .estimate import task_of
from .hardware import find_gpu
from .timing import step_time

PUBLISHED = {"x": 5.063, "h": 7.071, "d": 8.885}  # seconds of a step
TOKENS = {"x": 1024, "h": 1280, "d": 2816}
BATCH, GPUS, TILES = 256, 128, 7


def seconds(variant: str, *overrides: str) -> float:
    """Of a step of NVLM-X, -H or -D with Yi-34B, one sample in each sequence as the published script has it."""
    whole = [f"stages.sft.mixture.batch.size={BATCH}", "stages.sft.mixture.pack=false", *overrides]
    task = task_of(load_recipe(f"nvlm-{variant}-34b", whole), "sft", TOKENS[variant], TILES)
    return step_time(task.job(find_gpu("h100"), GPUS, task.layout)).total
