"""Benchmarks through the libraries that define them: lm-eval for text, lmms-eval for pictures."""

from megavlm.platform.registry import Registry

# By the library's name as a package, which the table of benchmarks says.
HARNESSES = Registry("harness", {
    "lm-eval": "megavlm.megatron_mm.evaluation.harness.language:evaluate_language",
    "lmms-eval": "megavlm.megatron_mm.evaluation.harness.vision:evaluate_vision",
})  # fmt: skip
