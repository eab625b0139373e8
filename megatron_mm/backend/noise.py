"""Warnings that say nothing to who trains or asks a model: each is one library's word to another, or to us."""

from __future__ import annotations

import warnings

NOISE = (
    # On purpose: `specs.modules` and `adam.py` stand in, and `guards.require_precision` speaks where it matters.
    "Transformer Engine and Apex are not installed",
    "Apex is not installed. Falling back to Torch Norm",
    # megatron-core 0.16 on its own default for CUDA graphs, which are off.
    "full scope is deprecated",
    # megatron-core 0.16 calling what torch 2.13 has new names for; it works until torch takes the old ones away.
    r"`load_state_dict` is deprecated",
    "Please use DTensor instead",
    r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated",
)


def silence() -> None:
    """Ignore exactly these; called before megatron-core is imported."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
