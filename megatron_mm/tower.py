"""Encoder and connector: tiles -> visual tokens. Every process holds all of it, but for tensor parallelism.

Which process looks at which tile is decided apart from who trains on the pack it belongs to (training/encode.py). So
there is no pipeline stage that encodes while the others wait.
"""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule

from .config import ModelConfig
from .contracts import BuildContext, VisualTokens
from .encoders.looking import look
from .tiles import Tiles


class VisionTower(MegatronModule):
    """uint8 tiles [n, 3, H, W] -> VisualTokens, tile after tile."""

    def __init__(self, model: ModelConfig, ctx: BuildContext) -> None:
        connector = model.connector.build(ctx, model.encoder.maps, model.decoder.hidden)
        super().__init__(config=connector.config)
        self.encoder = model.encoder.build(ctx)
        self.connector = connector

    def forward(self, tiles: Tiles) -> VisualTokens:
        """A frozen encoder keeps nothing for a backward that won't come."""
        return self.connector(look(self.encoder, tiles))

    def sharded_state_dict(self, prefix: str = "", *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The weights by their global names; those of the first pipeline stage are the ones that are written."""
        return first_stage_writes(super().sharded_state_dict(prefix, *args, **kwargs))


def first_stage_writes(state: dict[str, Any]) -> dict[str, Any]:
    """The sharded state of what stands on every pipeline stage, marked so that the first one's is written."""
    stage = parallel_state.get_pipeline_model_parallel_rank()
    return {name: _copy_of(value, stage) for name, value in state.items()}


def _copy_of(value: Any, stage: int) -> Any:
    if isinstance(value, ShardedTensor | ShardedTensorFactory | ShardedObject):
        value.replica_id = (stage, *value.replica_id[1:])
    return value
