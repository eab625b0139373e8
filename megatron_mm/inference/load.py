"""A stage's trained weights in any layout: megatron-core's checkpoints reshard as they are read."""

from __future__ import annotations

from pathlib import Path

from megatron.core import dist_checkpointing

from megavlm.platform.config import Recipe
from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder

from ..backend import build_context, device, init_distributed
from ..config import ModelConfig, Parallel, Stages
from ..model import VisionLanguageModel, build_model
from .checkpoints import find_checkpoint


def load_stage(
    run: RunFolder, recipe: Recipe, stage: str, parallel: Parallel, checkpoint: Path | None = None
) -> VisionLanguageModel:
    """Start the process groups of `parallel` and build this rank's part of the model with the stage's newest weights.

    The model is on its device, in the stage's precision, in evaluation mode. Raises InputError when the checkpoint does
    not hold this model.
    """
    folder = checkpoint or find_checkpoint(run, stage)
    config: ModelConfig = recipe.section("model")
    stages: Stages = recipe.section("stages")
    # FP8 weights are kept in bfloat16; running them needs no FP8.
    precision = "bf16" if stages[stage].precision == "fp8" else stages[stage].precision
    init_distributed(parallel, recipe.seed)
    model = build_model(config, build_context(parallel, precision))
    fill(model, folder)
    return model.to(device()).eval()


def fill(model: VisionLanguageModel, folder: Path) -> None:
    """Read this rank's part of every weight; raises InputError naming the first weight that is not there."""
    state = dist_checkpointing.load(model.sharded_state_dict(), str(folder))
    missing = [key for key in model.load_state_dict(state, strict=False).missing_keys if "_extra_state" not in key]
    if missing:
        raise InputError(f"the checkpoint has no weight '{missing[0]}'", where=str(folder), fix="is it this model's?")
