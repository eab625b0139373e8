"""Decoders: megatron-core's GPTModel in the shape of a published language model. A new one is one file and one line."""

from megavlm.platform.registry import Registry

DECODERS = Registry("decoder", {
    "llama": "megavlm.megatron_mm.decoders.llama:Llama",
    "qwen2": "megavlm.megatron_mm.decoders.qwen2:Qwen2",
})  # fmt: skip
