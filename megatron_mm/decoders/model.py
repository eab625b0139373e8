"""The decoders as megatron-core's GPTModel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from ..backend.specs import layer_spec, modules
from ..backend.transformer import mark_split_weights, transformer_config
from ..contracts import BuildContext

if TYPE_CHECKING:
    from .base import Decoder
    from .llama import RopeScaling


def config_of(spec: Decoder, ctx: BuildContext, **options: Any) -> TransformerConfig:
    """megatron-core's configuration of this shape."""
    return transformer_config(
        ctx,
        num_layers=spec.layers,
        hidden_size=spec.hidden,
        num_attention_heads=spec.heads,
        num_query_groups=spec.kv_heads,
        ffn_hidden_size=spec.ffn,
        normalization="RMSNorm",
        layernorm_epsilon=spec.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=spec.qkv_bias,
        **options,
    )


class DecoderModel(GPTModel):
    """GPTModel as the `decoder` of a larger model.

    megatron-core's schedules and CUDA graphs take the outermost attribute named "decoder" for the transformer block.
    """

    def _preprocess(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """megatron-core's, with the rotary angles of a packed sequence laid out position by position.

        Its own way is to look them up segment by segment, on this rank's share of each: it would want segments that
        context parallelism divides.
        """
        found = list(super()._preprocess(*args, **kwargs))
        if kwargs.get("packed_seq_params") is not None:
            found[1] = found[1][kwargs["position_ids"][0]]
        return tuple(found)

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The transformer layers of this stage."""
        return self.decoder.layers


def build(spec: Decoder, ctx: BuildContext, injection: Any) -> DecoderModel:
    """The stage of the decoder that `ctx` names. Embeddings come out whole: the model splits them after injection."""
    # layers that differ are named one by one in checkpoints; those alike are one tensor with an axis of layers
    config = config_of(spec, ctx, hetereogenous_dist_checkpoint=injection.has_context)
    block = TransformerBlockSubmodules(
        layer_specs=injection.layer_specs(_layer_specs(config, ctx), spec), layer_norm=modules(ctx.params_dtype).norm
    )
    model = DecoderModel(
        config=config,
        transformer_layer_spec=block,
        vocab_size=spec.padded_vocab(ctx.parallel.tp),
        max_sequence_length=spec.max_positions,
        pre_process=ctx.pre_process,
        post_process=ctx.post_process,
        share_embeddings_and_output_weights=spec.tied,
        position_embedding_type="rope",
        rotary_base=spec.rope_base,
        scatter_embedding_sequence_parallel=False,
        vp_stage=ctx.vp_stage,
    )
    scaling = getattr(spec, "rope_scaling", None)  # not every family has it
    if scaling is not None:
        _scale(model.rotary_pos_emb, scaling)
    mark_split_weights(model)
    if ctx.post_process and model.vocab_size > spec.vocab:
        model.output_layer.register_forward_hook(_HidePadding(spec.vocab))
    return model


def _layer_specs(config: TransformerConfig, ctx: BuildContext) -> dict[int, ModuleSpec]:
    """The layers of this stage by their number in the whole decoder, from 0."""
    first = get_transformer_layer_offset(config, ctx.vp_stage)
    numbers = range(first, first + get_num_layers_to_build(config, vp_stage=ctx.vp_stage))
    return dict.fromkeys(numbers, layer_spec(AttnMaskType.causal, dtype=ctx.params_dtype))


def _scale(rotary: RotaryEmbedding, how: RopeScaling) -> None:
    """Llama 3.1's frequencies. GPTModel passes on only the factor, with Llama 3.1's own other three values."""
    rotary.inv_freq = rotary._apply_scaling(
        rotary.inv_freq, how.factor, how.low_freq_factor, how.high_freq_factor, how.original_positions
    )


class _HidePadding:
    """Forward hook of the output layer: logits of the padding rows are -inf, so no layout changes the softmax."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, layer: Any, inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        logits, bias = output
        whole = logits.shape[-1] == layer.output_size
        first = 0 if whole else layer.tp_group.rank() * layer.output_size_per_partition
        ids = torch.arange(first, first + logits.shape[-1], device=logits.device)
        return logits.masked_fill(ids >= self.vocab, float("-inf")), bias
