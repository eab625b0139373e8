"""Evaluation: held-out suites, predictions, chance, and the paired gate. A new suite is one line in this table."""

from megavlm.platform.registry import Registry

SUITES = Registry("suite", {
    "text": "megavlm.megatron_mm.evaluation.predict:evaluate_suite",
    "vqa": "megavlm.megatron_mm.evaluation.predict:evaluate_suite",
})  # fmt: skip
