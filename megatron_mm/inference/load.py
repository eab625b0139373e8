"""A stage's trained weights in any layout: megatron-core's checkpoints reshard as they are read."""

from __future__ import annotations

from pathlib import Path

from megavlm.platform.config import Recipe
from megavlm.platform.runs import RunFolder

from ..backend import build_context, device, init_distributed
from ..checkpoints.listing import find_checkpoint
from ..checkpoints.weights import fill
from ..config import Parallel
from ..data.build import StageData
from ..model import VisionLanguageModel, build_model


def load_stage(
    run: RunFolder, recipe: Recipe, stage: str, parallel: Parallel, checkpoint: Path | None = None
) -> VisionLanguageModel:
    """Start the process groups of `parallel` and build this rank's part of the model with the stage's newest weights.

    The model is on its device, in the stage's precision, in evaluation mode, and has not what only training needs.
    Raises InputError when the checkpoint does not hold this model.
    """
    folder = checkpoint or find_checkpoint(run, stage)
    spec = StageData.of(recipe, stage)
    # FP8 weights are kept in bfloat16; running them needs no FP8.
    precision = "fp32" if spec.stage.precision == "fp32" else "bf16"
    init_distributed(parallel, recipe.seed)
    model = build_model(spec.model.answering(), build_context(parallel, precision))
    fill(model, folder)
    return model.to(device()).eval()
