"""The schemas of a training recipe: model axes, data sets, stages. Arithmetic only: importing this loads no torch."""

from ..parts import AXES
from .data import DataConfig, GlobalBatch, Mixture, Share
from .gate import Gate, GateStage
from .model import ModelConfig
from .parallel import Parallel
from .stage import Checkpoint, Group, Loss, Optimizer, Stage
from .stages import Run, Stages

__all__ = [
    "AXES",
    "Checkpoint",
    "DataConfig",
    "Gate",
    "GateStage",
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
