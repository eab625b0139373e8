"""The schemas of a training recipe: model axes, data sets, stages. Arithmetic only: importing this loads no torch."""

from ..parts import AXES
from .data import DataConfig, GlobalBatch, Mixture, Share
from .model import ModelConfig
from .stage import Checkpoint, Gate, Group, Loss, Optimizer, Parallel, Run, Stage, Stages

__all__ = [
    "AXES",
    "Checkpoint",
    "DataConfig",
    "Gate",
    "GlobalBatch",
    "Group",
    "Loss",
    "Mixture",
    "ModelConfig",
    "Optimizer",
    "Parallel",
    "Run",
    "Share",
    "Stage",
    "Stages",
]
