"""The one vision-language model: encoder, connector, injection, decoder.

    tiles -> ENCODER -> feature maps -> CONNECTOR -> visual tokens -> INJECTION -> DECODER -> loss
                                                     text embeddings ----^

Encoder and connector live on the first pipeline stage. Written for one device; how it is split is in the layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from .backend.guards import require_schedule
from .config import AXES, ModelConfig
from .contracts import BuildContext, PackedBatch


class VisionLanguageModel(MegatronModule):
    """One point in the space of the axes, or one pipeline stage of it."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, model: ModelConfig, ctx: BuildContext) -> None:
        decoder = model.decoder.build(ctx)
        super().__init__(config=decoder.config)
        require_schedule(self.config)
        self.spec, self.vp_stage = model, ctx.vp_stage
        self.pre_process, self.post_process = ctx.pre_process, ctx.post_process
        self.share_embeddings_and_output_weights = decoder.share_embeddings_and_output_weights
        if ctx.pre_process:
            width = model.decoder.hidden
            self.encoder = model.encoder.build(ctx)
            self.connector = model.connector.build(ctx, model.encoder.channels, width)
            self.injection = model.injection.build(ctx, width)
        self.decoder = decoder

    def forward(self, batch: PackedBatch, *, gather_logits: bool = False, inference_context: Any = None) -> Tensor:
        """Cross entropies float32 [1, s] on the last stage where the pack has labels, otherwise logits [1, s, vocab].

        Logits are this rank's share of the vocabulary unless `gather_logits`, which asks for them whole, labels or
        not. Earlier stages return hidden states. With megatron-core's `inference_context` the pack is one sample
        whose earlier tokens may lie in the KV cache.
        """
        hidden, extra = self._decoder_input(batch) if self.pre_process else (None, {})
        return self.decoder(
            input_ids=batch.tokens,
            position_ids=batch.position_ids,
            attention_mask=None,
            decoder_input=hidden,
            labels=_targets(batch) if self.post_process and not gather_logits else None,
            packed_seq_params=_segments(batch) if inference_context is None else None,
            extra_block_kwargs=extra,
            inference_context=inference_context,
            runtime_gather_output=True if gather_logits else None,
        )

    def _decoder_input(self, batch: PackedBatch) -> tuple[Tensor, dict[str, Any]]:
        """[s, 1, h] (this rank's part of s under sequence parallelism), and what the injection tells the block."""
        hidden = self.decoder.embedding(input_ids=batch.tokens, position_ids=batch.position_ids)
        extra: dict[str, Any] = {}
        if len(batch.tiles):
            hidden, extra = self.injection(hidden, self._look(batch.tiles), batch)
        elif torch.is_grad_enabled():
            hidden = _TouchParameters.apply(hidden, *self._visual_parameters())
        if self.config.sequence_parallel:
            hidden = scatter_to_sequence_parallel_region(hidden)
        return hidden, extra

    def _look(self, tiles: Tensor) -> Any:
        """Tiles [n, 3, H, W] -> VisualTokens; a frozen encoder keeps nothing for a backward that won't come."""
        needs_grad = tiles.requires_grad or any(p.requires_grad for p in self.encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and needs_grad):
            features = self.encoder(tiles)
        return self.connector(features)

    def _visual_parameters(self) -> list[Tensor]:
        modules = (self.encoder, self.connector, self.injection)
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def freeze(self, train: Iterable[str]) -> None:
        """Train the axes named in `train` (of encoder, connector, injection, decoder) and freeze the others."""
        wanted = set(train)
        for axis in AXES:
            module = getattr(self, axis, None)
            if module is not None:
                module.requires_grad_(axis in wanted)

    def set_input_tensor(self, input_tensor: list[Tensor] | Tensor | None) -> None:
        """The hidden states of the stage before, set by megatron-core's schedule."""
        self.decoder.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """The tied weight, which megatron-core keeps equal on the first and the last stage."""
        return self.decoder.shared_embedding_or_output_weight()


def build_model(model: ModelConfig, ctx: BuildContext) -> VisionLanguageModel:
    """The stage of `model` that `ctx` names, weights allocated on the default device and not drawn."""
    return VisionLanguageModel(model, ctx)


def _targets(batch: PackedBatch) -> Tensor | None:
    """Labels with a harmless 0 where there is none: its loss is weighted by nothing."""
    return None if batch.labels is None else batch.labels.clamp(min=0)


def _segments(batch: PackedBatch) -> PackedSeqParams:
    longest = int(batch.cu_seqlens.diff().max())
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


class _TouchParameters(torch.autograd.Function):
    """Identity on `hidden` whose backward hands every parameter a gradient of exact zeros.

    A text-only pack runs no encoder; with this its ranks still report every gradient, so no reduction waits.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        zeros = (p.new_zeros(()).expand_as(p) for p in ctx.saved_tensors)  # written out one parameter at a time
        return (grad, *zeros)
