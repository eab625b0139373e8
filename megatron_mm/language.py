"""Injection and decoder: a pack with its visual tokens -> its losses, on one pipeline stage."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from .backend.context import own_positions
from .backend.guards import require_schedule
from .config import ModelConfig
from .contracts import BuildContext, PackedBatch
from .injection.sight import Sight, SightedParams, next_row
from .objectives.loss import Outcome

if TYPE_CHECKING:
    from .objectives.patch_aligning_model import Taps


class LanguageStage(MegatronModule):
    """Injection and decoder, or the part of them that one (virtual) pipeline stage holds."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, model: ModelConfig, ctx: BuildContext) -> None:
        decoder = model.decoder.build(ctx, model.injection)
        super().__init__(config=decoder.config)
        require_schedule(self.config)
        self.vp_stage = ctx.vp_stage
        self.pre_process, self.post_process = ctx.pre_process, ctx.post_process
        self.share_embeddings_and_output_weights = decoder.share_embeddings_and_output_weights
        self.injection = model.injection.build(ctx, model.tokens_per_tile)
        self.decoder = decoder
        tapped = (each for each in model.objectives if each.taps_layers)
        self.objectives = nn.ModuleDict({each.name: each.tapped(ctx, model, decoder) for each in tapped})
        self._received: Tensor | None = None

    @property
    def taps(self) -> Taps | None:
        """The objective that looks at hidden states, in training."""
        return next(iter(self.objectives.values()), None) if self.training else None  # type: ignore[return-value]

    def forward(
        self, batch: PackedBatch, *, gather_logits: bool = False, inference_context: Any = None
    ) -> Tensor | Outcome:
        """Cross entropies float32 [1, s / cp] on the last stage where the pack has labels, otherwise logits.

        Tiles have to have become `batch.visual` before. Logits [1, s / cp, vocab] are this rank's share of the
        vocabulary unless `gather_logits`, which asks for them whole, labels or not. Earlier stages return hidden
        states. In training with an objective that taps layers it is an Outcome, and what was tapped is behind the
        hidden states. With megatron-core's `inference_context` the pack is one sample whose earlier tokens may lie in
        the KV cache.
        """
        mine = own_part(batch) if self.config.context_parallel_size > 1 else batch
        context, sight = self._beside(batch, inference_context)
        visual = visual_rows(mine)
        if inference_context is not None:
            inference_context.visual = visual
        taps = self.taps
        if taps is not None:
            context = self._begin(taps, batch)
        out = self.decoder(
            input_ids=mine.tokens,
            position_ids=batch.position_ids,
            attention_mask=None,
            decoder_input=self._decoder_input(mine) if self.pre_process else None,
            labels=_targets(mine) if self.post_process and not gather_logits else None,
            packed_seq_params=_segments(batch, sight, visual, taps) if inference_context is None else None,
            extra_block_kwargs={} if context is None else {"context": context},
            inference_context=inference_context,
            runtime_gather_output=True if gather_logits else None,
        )
        if taps is None or not self.post_process:
            return out
        assert batch.taught is not None, "nobody showed the tiles to the teacher"
        return Outcome(out, taps.mismatch(batch.taught, batch))

    def _begin(self, taps: Taps, batch: PackedBatch) -> Tensor:
        """Take apart what the stage before sent: its hidden states, and what was tapped, as the layers' context."""
        rows = batch.length // (self.config.tensor_model_parallel_size if self.config.sequence_parallel else 1)
        hidden, context = taps.begin(self._received, rows, batch)
        self.decoder.set_input_tensor(hidden)
        self._received = None
        return context

    def carried_rows(self, length: int) -> int:
        """Rows that stages send each other beside those of a pack of so many positions, of all ranks of a sequence."""
        taps, config = self.taps, self.config
        rows = 0 if taps is None else taps.carried_rows(length)
        return rows * config.tensor_model_parallel_size if config.sequence_parallel else rows

    def _decoder_input(self, batch: PackedBatch) -> Tensor:
        """[s, 1, h], this rank's part of s under sequence parallelism."""
        hidden = self.decoder.embedding(input_ids=batch.tokens, position_ids=batch.position_ids)
        hidden = self.injection.merge(hidden, batch)
        return scatter_to_sequence_parallel_region(hidden) if self.config.sequence_parallel else hidden

    def _beside(self, batch: PackedBatch, inference_context: Any) -> tuple[Tensor | None, Sight | None]:
        """The pack's context, and who sees what of it. A generation keeps both, for the tokens that come after."""
        if batch.context is not None and batch.tag_values is None and len(batch.context.tag_ids):
            batch = replace(batch, tag_values=self.embed(batch.context.tag_ids))
        context, sight = self.injection.beside(batch, own_positions(batch.length).to(batch.tokens.device))
        if inference_context is not None:
            inference_context.sight = sight or next_row(getattr(inference_context, "sight", None))
        return context, sight

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings [t, h] of token ids int64 [t]; on the first pipeline stage."""
        return self.decoder.embedding(input_ids=ids[None], position_ids=torch.zeros_like(ids)[None])[:, 0]

    def set_input_tensor(self, input_tensor: list[Tensor] | Tensor | None) -> None:
        """The hidden states of the stage before, set by megatron-core's schedule."""
        (received,) = input_tensor if isinstance(input_tensor, list) else [input_tensor]
        if self.taps is None:
            self.decoder.set_input_tensor(received)
        else:
            self._received = received

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """The tied weight, which megatron-core keeps equal on the first and the last stage."""
        return self.decoder.shared_embedding_or_output_weight()


def own_part(batch: PackedBatch) -> PackedBatch:
    """What this rank holds of a pack under context parallelism; segments, positions and tiles stay the whole pack's.

    An inline token that stands on another rank gets the place -1.
    """
    own = own_positions(batch.tokens.shape[1]).to(batch.tokens.device)
    where = torch.full((batch.tokens.shape[1],), -1, device=own.device)
    where[own] = torch.arange(len(own), device=own.device)
    return replace(
        batch,
        tokens=batch.tokens[:, own],
        labels=None if batch.labels is None else batch.labels[:, own],
        loss_weights=batch.loss_weights[:, own],
        visual_index=where[batch.visual_index],
    )


def _targets(batch: PackedBatch) -> Tensor | None:
    """Labels with a harmless 0 where there is none: its loss is weighted by nothing."""
    return None if batch.labels is None else batch.labels.clamp(min=0)


def visual_rows(batch: PackedBatch) -> Tensor:
    """Bool [b, s]: where a visual token stands, in what this rank holds of a pack under context parallelism."""
    found = torch.zeros(batch.tokens.shape, dtype=torch.bool, device=batch.tokens.device)
    found[0, batch.visual_index[batch.visual_index >= 0]] = True
    return found


def _segments(batch: PackedBatch, sight: Sight | None, visual: Tensor, taps: Taps | None) -> PackedSeqParams:
    """Where the samples lie, where visual tokens stand, who sees what of a context, and what is tapped.

    The padded ends are for megatron-core's rotary embedding alone: one run of positions.
    """
    longest = int(batch.cu_seqlens.diff().max())
    whole = torch.tensor([0, batch.position_ids.shape[1]], dtype=torch.int32)
    return SightedParams(
        sight=sight,
        visual=visual[0],
        cells=None if taps is None else taps.cells.rows(batch),
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        cu_seqlens_q_padded=whole,
        cu_seqlens_kv_padded=whole,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
