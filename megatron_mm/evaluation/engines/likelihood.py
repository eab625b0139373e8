"""Log-probabilities of chosen tokens at chosen places of a pack, from one forward pass over all ranks of a model."""

from __future__ import annotations

from dataclasses import replace

import torch
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from ...contracts import PackedBatch
from ...inference.passing import check_layout_of, forward, told
from ...model import VisionLanguageModel
from .softmax import judge

ROWS = 256  # places whose whole vocabulary is in memory at a time


def likelihoods(model: VisionLanguageModel, pack: PackedBatch, places: Tensor, tokens: Tensor) -> Tensor:
    """float64 [n, 2] on the CPU of every rank: tokens[k]'s log-probability after places[k], and 1 where likeliest.

    `places` and `tokens` are int64 [n]; a place is a position of the pack. Unlike `inference.score`, which tells every
    token, only the places asked for are gathered and normalised: of a benchmark's text that is one in hundreds. The
    softmax is in float32. Raises ConfigError for a layout that cannot (`check_layout_of`).
    """
    check_layout_of(model)
    logits = forward(model.eval(), replace(pack, labels=None))
    vocab = model.spec.decoder.vocab
    rows = None if logits is None else _rows(logits[0], places.to(logits.device), tokens.to(logits.device), vocab)
    return told(rows, (len(places), 2))


def _rows(logits: Tensor, places: Tensor, tokens: Tensor, vocab: int) -> Tensor:
    """Logits [s, padded vocab / tp] -> float64 [n, 2]."""
    pieces = zip(places.split(ROWS), tokens.split(ROWS), strict=True)
    return torch.cat([judge(_whole(logits[here])[:, :vocab], wanted) for here, wanted in pieces])


def _whole(logits: Tensor) -> Tensor:
    """The whole vocabulary's columns on every tensor-parallel rank."""
    return gather_from_tensor_model_parallel_region(logits)
