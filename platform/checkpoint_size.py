"""How large a checkpoint of a training is: one arithmetic for whoever plans it and whoever queues it."""

from __future__ import annotations

OPTIMIZER_BYTES = 12  # of a trained parameter: fp32 master copy and AdamW's two fp32 moments
MODEL_BYTES = {"fp32": 4}  # of any parameter; 2 in every shorter precision, FP8 included
SHORTER_BYTES = 2


def checkpoint_bytes(parameters: int, trained: int, precision: str) -> int:
    """Bytes of one checkpoint: a model of `parameters`, and the optimizer's state of those that are `trained`."""
    return parameters * MODEL_BYTES.get(precision, SHORTER_BYTES) + trained * OPTIMIZER_BYTES
