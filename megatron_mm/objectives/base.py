"""What an objective is: a loss with a weight of its own, and what it wants of the model. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat

from megavlm.platform.config import Config

from ..costs import Cost, MicroBatch, Setting
from ..flops import Flops

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from torch import nn

    from ..config import ModelConfig, Parallel
    from ..contracts import BuildContext
    from ..decoders.base import Decoder
    from .loss import Loss


class Objective(Config):
    """Base of the objectives. This one taps no layer, has no weights and no teacher."""

    name: str
    weight: NonNegativeFloat = 1.0  # in the sum of all objectives, each of them divided by its own amount before

    @property
    def taps_layers(self) -> bool:
        """Whether it looks at hidden states of the decoder's layers. Of a model's objectives one may."""
        return False

    def parameters(self, decoder: Decoder) -> int:
        """Parameters of its own, a teacher's not among them."""
        return 0

    def teacher_parameters(self) -> int:
        """Parameters of its teacher, which nothing trains and no export holds."""
        return 0

    def cells(self, model: ModelConfig, size: tuple[int, int]) -> int:
        """How many places of a tile of this height and width it looks at."""
        return 0

    def flops(self, decoder: Decoder, cells: int) -> Flops:
        """Forward FLOPs of its own for so many of the teacher's cells, the teacher's not among them."""
        return Flops()

    def teacher_flops(self) -> float:
        """Forward FLOPs of the teacher for one tile."""
        return 0.0

    def cost(self, model: ModelConfig, micro: MicroBatch, setting: Setting) -> Cost:
        """What of it stands beside the decoder costs one process for a micro-batch, its pipeline stages together."""
        return Cost()

    def teacher_costs(self, setting: Setting) -> tuple[Cost, ...]:
        """What its teacher costs one process for one tile, block by block."""
        return ()

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError where the rest of the model has not what it needs."""

    def check(self, parallel: Parallel) -> None:
        """Raise ConfigError where it cannot be split over `parallel`."""

    def build(self, model: ModelConfig | None = None) -> Loss:
        """The loss: what is summed, and what it is divided by."""
        raise NotImplementedError

    def tapped(self, ctx: BuildContext, model: ModelConfig, decoder: GPTModel) -> nn.Module:
        """What of it stands on a pipeline stage with these layers, weights not drawn."""
        raise NotImplementedError

    def build_teacher(self, ctx: BuildContext, model: ModelConfig) -> nn.Module | None:
        """The module that looks at the tiles beside the tower; None without one."""
        return None
