"""Injection: how visual tokens meet the decoder. A new one is one file here and one line in this table."""

from megavlm.platform.registry import Registry

INJECTIONS = Registry("injection", {
    "inline": "megavlm.megatron_mm.injection.inline:Inline",
    "cross_attention": "megavlm.megatron_mm.injection.cross_attention:CrossAttention",
    "hybrid": "megavlm.megatron_mm.injection.hybrid:Hybrid",
    "modality_weights": "megavlm.megatron_mm.injection.modality_weights:ModalityWeights",
})  # fmt: skip
