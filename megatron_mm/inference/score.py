"""How likely a text is: the log-probability of every token, given those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from megavlm.platform.errors import InputError

from ..contracts import PackedBatch
from ..model import VisionLanguageModel
from .likely import Likely, read_rows, rows_of
from .passing import check_layout_of, forward, told

ROWS = 256  # positions whose whole vocabulary is in memory at a time: 32,000 x 150,000 logits would be 19 GB


def score(model: VisionLanguageModel, pack: PackedBatch, top: int = 0) -> list[list[Likely]]:
    """For each sample of a pack its tokens after the first, with log-probabilities and the `top` likeliest beside them.

    One forward pass as in training. All ranks call this together and are told the same. At visual positions the
    numbers mean nothing. Raises ConfigError for a layout that cannot (`check_layout_of`).
    """
    check_layout_of(model)
    logits = forward(model.eval(), replace(pack, labels=None))
    tokens = pack.tokens[0]
    vocab = model.spec.decoder.vocab
    rows = None if logits is None else _rows(logits[0], tokens.roll(-1).to(logits.device), top, vocab)
    found = read_rows(told(rows, (len(tokens), 2 + 2 * top)))
    return [found[start : end - 1] for start, end in pairwise(pack.cu_seqlens.tolist())]


def _rows(logits: Tensor, tokens: Tensor, top: int, vocab: int) -> Tensor:
    """Logits [s, padded vocab / tp], tokens int64 [s] -> rows_of of them, a chunk at a time."""
    pieces = zip(logits.split(ROWS), tokens.split(ROWS), strict=True)
    whole = gather_from_tensor_model_parallel_region
    return torch.cat([rows_of(whole(piece)[:, :vocab], ids, top) for piece, ids in pieces])


def text_pack(texts: Sequence[Sequence[int]], model: VisionLanguageModel) -> PackedBatch:
    """Token ids of texts without images as one pack, a sample each. Raises InputError for one empty or too long."""
    positions, side = model.spec.decoder.max_positions, model.spec.tiling.tile
    for ids in texts:
        check_text(ids, positions, model.spec.decoder.vocab)
    tokens = torch.tensor([token for ids in texts for token in ids])[None]
    return PackedBatch(
        tokens=tokens,
        labels=None,
        loss_weights=torch.zeros(tokens.shape),
        position_ids=torch.cat([torch.arange(len(ids)) for ids in texts])[None],
        cu_seqlens=torch.tensor([0, *map(len, texts)]).cumsum(0).int(),
        tiles=torch.zeros(0, 3, side, side, dtype=torch.uint8),
        visual_index=torch.zeros(0, dtype=torch.int64),
    )


def check_text(ids: Sequence[int], positions: int, vocab: int) -> None:
    """Raise InputError unless these token ids are a text that a decoder of so many positions can read."""
    if not ids:
        raise InputError("the prompt has no tokens", fix="give at least one")
    if len(ids) > positions:
        raise InputError(f"the prompt has {len(ids)} tokens and the decoder {positions} positions", fix="shorten it")
    if not all(0 <= token < vocab for token in ids):
        wrong = next(token for token in ids if not 0 <= token < vocab)
        raise InputError(f"token id {wrong} is not in the vocabulary", fix=f"use ids from 0 to {vocab - 1}")
