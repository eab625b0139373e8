"""A prompt: messages and images as one sample that the model can be given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megavlm.platform.errors import InputError
from megavlm.platform.images import decode

from ..config import DataConfig, ModelConfig
from ..contracts import PackedBatch
from ..data.as_torch import to_torch
from ..data.assemble import assemble, shown
from ..data.measure import template, tiles_of
from ..data.samples import IMAGE_MARK, Message
from ..data.tokenizer import TextTokenizer


def user_message(text: str, images: int) -> Message:
    """A user's turn; images without an `<image>` mark stand before the text. Raises InputError for too many marks."""
    missing = images - text.count(IMAGE_MARK)
    if missing < 0:
        raise InputError(
            f"the prompt has {images - missing} {IMAGE_MARK} mark(s) and {images} image(s)", fix="give --image per mark"
        )
    return {"role": "user", "content": IMAGE_MARK * missing + text}


def encode_prompt(
    messages: Sequence[Message],
    images: Sequence[bytes],
    tokenizer: TextTokenizer,
    model: ModelConfig,
    data: DataConfig,
) -> PackedBatch:
    """A batch of the prompt's tokens, ending with an open assistant turn. Raises InputError for an unreadable image."""
    chat = template(model, tokenizer, data.template)
    encoded = chat.prompt(messages, [tiles_of(image, model.tiling) for image in images])
    prepared = shown(encoded, [model.tiling.cut(decode(image)) for image in images], weight=0.0)
    return to_torch(assemble([prepared], len(encoded.tokens), model.tiling.side, tokenizer.padding, chat.has_context))


def next_tokens(tokens: Sequence[int], position: int, like: PackedBatch) -> PackedBatch:
    """A batch of one more token for each of several samples, all at the same `position`; no images and no context come
    with it."""
    device, shape = like.tokens.device, (len(tokens), 1)
    return PackedBatch(
        tokens=torch.tensor(tokens, device=device).view(shape),
        labels=None,
        loss_weights=torch.zeros(shape, device=device),
        position_ids=torch.full(shape, position, device=device),
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32, device=device),
        tiles=like.tiles[:0],
        visual_index=like.visual_index[:0],
    )
