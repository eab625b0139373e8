"""Engines: who answers a benchmark's questions. A new one is one file and one line in this table."""

from megavlm.platform.registry import Registry

ENGINES = Registry("engine", {
    "megatron": "megavlm.megatron_mm.evaluation.engines.megatron:MegatronEngine",
    "hf": "megavlm.megatron_mm.evaluation.engines.hf:HuggingFaceEngine",
    "openai": "megavlm.megatron_mm.evaluation.engines.openai:EndpointEngine",
})  # fmt: skip
