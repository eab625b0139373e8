"""A stage's layout: megatron-core's axes. Loads no torch."""

from __future__ import annotations

from pydantic import PositiveInt, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError


class Parallel(Config):
    """megatron-core's axes. GPUs x nodes = tp x pp x cp x dp, dp being what is left."""

    tp: PositiveInt = 1
    pp: PositiveInt = 1
    cp: PositiveInt = 1
    vp: PositiveInt = 1  # parts of the decoder that each pipeline stage holds, interleaved
    first_stage_layers: PositiveInt | None = None  # decoder layers of the first and of the last pipeline stage, which
    last_stage_layers: PositiveInt | None = None  # also hold the embedding and the output layer; null: as the others
    sequence_parallel: bool = False
    overlap: bool | None = None  # gradients summed, weights gathered while it computes; null: where there are GPUs

    @property
    def split(self) -> int:
        """Processes that one copy of the model is split over."""
        return self.tp * self.pp * self.cp

    @model_validator(mode="after")
    def _consistent(self) -> Parallel:
        if self.sequence_parallel and self.tp == 1:
            raise ConfigError(
                "sequence_parallel needs tensor parallelism, and tp is 1",
                where="parallel.sequence_parallel",
                fix="set parallel.tp >= 2 or parallel.sequence_parallel=false",
            )
        if self.vp > 1 and self.pp == 1:
            raise ConfigError(
                f"vp {self.vp} interleaves pipeline stages, and pp is 1", where="parallel.vp", fix="set parallel.vp=1"
            )
        if self.pp == 1 and (self.first_stage_layers or self.last_stage_layers):
            raise ConfigError(
                "there is one pipeline stage, which holds all layers",
                where="parallel.first_stage_layers" if self.first_stage_layers else "parallel.last_stage_layers",
                fix="leave it out, or set parallel.pp",
            )
        return self
