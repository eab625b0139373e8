"""The one vision-language model: encoder, connector, injection, decoder.

    tiles -> ENCODER -> feature maps -> CONNECTOR -> visual tokens -> INJECTION -> DECODER -> loss
                                                     text embeddings ----^             + OBJECTIVES

Encoder and connector (the tower) stand on every process, the decoder is cut into pipeline stages. Written for one
device; how it is split is in the layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .backend.distributed import at_stage
from .config import ModelConfig
from .contracts import BuildContext, PackedBatch
from .language import LanguageStage
from .parts import OWNERS, narrowest
from .tower import VisionTower


class VisionLanguageModel(nn.Module):
    """One point in the space of the axes: the tower, and this process' stages of the decoder."""

    def __init__(self, model: ModelConfig, contexts: list[BuildContext]) -> None:
        super().__init__()
        self.spec = model
        self.tower = VisionTower(model, contexts[0])
        self.stages = nn.ModuleList(LanguageStage(model, ctx) for ctx in contexts)
        teachers = (each.build_teacher(contexts[0], model) for each in model.objectives)
        self.teacher = next((teacher for teacher in teachers if teacher is not None), None)

    @property
    def config(self) -> Any:
        """megatron-core's TransformerConfig of the decoder."""
        return self.stages[0].config

    def see(self, batch: PackedBatch) -> PackedBatch:
        """The pack without its tiles: as visual tokens, where this process' stages want them."""
        wanted = len(batch.tiles) and (self.spec.injection.has_context or self.stages[0].pre_process)
        return replace(batch, visual=self.tower(batch.tiles).values if wanted else batch.visual, tiles=batch.tiles[:0])

    def forward(self, batch: PackedBatch, **options: Any) -> Tensor:
        """The whole way through one pipeline stage, which is all there is without pipeline parallelism."""
        (stage,) = self.stages
        return stage(self.see(batch), **options)

    def axis(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and weight of what this process holds of an axis, or of the objectives, their teacher not among them.

        The injection's may stand in the decoder's layers.
        """
        if name in ("encoder", "connector"):
            yield from getattr(self.tower, name).named_parameters()
            return
        for stage in self.stages:
            if name == "objectives":
                yield from stage.get_submodule("objectives").named_parameters()
                continue
            for inside, parameter in stage.get_submodule("decoder").named_parameters():
                if self.spec.injection.owns(inside) == (name == "injection"):
                    yield inside, parameter

    def carried_rows(self, length: int) -> int:
        """Rows that pipeline stages send each other behind the hidden states of a pack of so many positions."""
        return self.stages[0].carried_rows(length)  # type: ignore[operator]

    def freeze(self, train: Iterable[str]) -> None:
        """Train the axes and parts named in `train` and freeze all else."""
        wanted = list(train)
        for axis in OWNERS:
            for inside, parameter in self.axis(axis):
                parameter.requires_grad_(narrowest(wanted, axis, inside) is not None)

    def sharded_state_dict(self) -> dict[str, Any]:
        """Every weight by its global name, which no layout changes; stages apart, since they number layers alike."""
        return {part: module.sharded_state_dict() for part, module in self._parts()}

    def load_parts(self, state: dict[str, Any]) -> list[str]:
        """Take what `sharded_state_dict` named; returns the names of weights that are missing."""
        missing = []
        for part, module in self._parts():
            missing += module.load_state_dict(state[part], strict=False).missing_keys
        return [name for name in missing if "_extra_state" not in name]

    def _parts(self) -> Iterator[tuple[str, Any]]:
        yield "tower", self.tower
        if self.teacher is not None:
            yield "teacher", self.teacher
        yield from ((f"stage-{number}", stage) for number, stage in enumerate(self.stages))


def build_model(model: ModelConfig, ctx: BuildContext) -> VisionLanguageModel:
    """This process' part of `model`, weights allocated on the default device and not drawn.

    `ctx` is that of its first stage; an interleaved pipeline's others are asked of the process groups.
    """
    return VisionLanguageModel(model, [ctx, *(at_stage(ctx, k) for k in range(1, ctx.parallel.vp))])
