"""The size of a checkpoint against one that was published."""

from __future__ import annotations

import pytest

from megavlm.platform.checkpoint_size import checkpoint_bytes


def test_the_trillion_parameter_models_checkpoint_has_13_8_terabytes():
    """Narayanan et al. 2021 (arXiv 2104.04473, sections 5.1 and 5.10): 1,008 billion parameters, all trained."""
    assert checkpoint_bytes(1_008_000_000_000, 1_008_000_000_000, "bf16") == pytest.approx(13.8e12, rel=0.03)


def test_what_is_frozen_has_no_optimizer_state_and_fp32_has_four_bytes():
    assert checkpoint_bytes(100, 0, "bf16") == 200
    assert checkpoint_bytes(100, 10, "fp32") == 100 * 4 + 10 * 12
