"""The text of tags that stand in a context (NVLM-H), as embeddings on every pipeline stage; the first alone has them.

They are few, so they go round once a step, before the pipeline runs, and their gradients come back after it: inside
its schedule a stage that waits for another's collective would wait for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from .contracts import PackedBatch
from .model import VisionLanguageModel


class TagTexts:
    """One step's. All processes of a pipeline call `give` and, where the decoder learns, `learn` after its schedule.

    Without pipeline parallelism there is nothing to do: the stage embeds them where it needs them.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model
        self.group = parallel_state.get_pipeline_model_parallel_group()
        self._made: Tensor | None = None  # with their graph, on the first stage
        self._given: Tensor | None = None

    def give(self, packs: Sequence[PackedBatch]) -> list[PackedBatch]:
        """The packs with `tag_values` for their context's tag ids."""
        counts = [0 if pack.context is None else len(pack.context.tag_ids) for pack in packs]
        if self.group.size() == 1 or not sum(counts):
            return list(packs)
        stage, config = self.model.stages[0], self.model.config
        ids = torch.cat([pack.context.tag_ids for pack in packs if pack.context is not None])
        if stage.pre_process:
            self._made = stage.embed(ids)  # type: ignore[operator]
            values = self._made.detach().clone()
        else:
            values = torch.empty(len(ids), config.hidden_size, dtype=config.params_dtype, device=ids.device)
        dist.broadcast(values, parallel_state.get_pipeline_model_parallel_first_rank(), group=self.group)
        self._given = values.requires_grad_(torch.is_grad_enabled() and self._learns())
        return [replace(pack, tag_values=part) for pack, part in zip(packs, self._given.split(counts), strict=True)]

    def learn(self) -> None:
        """Bring the gradients of all stages to the first, and take them into the embedding."""
        if self._given is None or not self._learns():
            return
        grad = torch.zeros_like(self._given) if self._given.grad is None else self._given.grad
        dist.all_reduce(grad, group=self.group)
        if self._made is not None:
            self._made.backward(grad)
        self._made = self._given = None

    def _learns(self) -> bool:
        """The same on all stages: freezing goes by axes."""
        return any(parameter.requires_grad for _, parameter in self.model.axis("decoder"))
