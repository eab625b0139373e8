"""Evaluation: held-out suites, predictions, chance, and the paired gate. A new suite is one line in this table."""

from megavlm.platform.registry import Registry

SUITES = Registry("suite", {
    "text": "megavlm.megatron_mm.evaluation.predict:greedy_exact_match",
    "vqa": "megavlm.megatron_mm.evaluation.predict:greedy_exact_match",
})  # fmt: skip
