"""Inference: KV-cached generation on megatron-core's inference context."""
