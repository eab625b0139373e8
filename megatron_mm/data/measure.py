"""What a sample costs in tokens and tiles, known from its text and its images' headers alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from megavlm.platform.errors import InputError
from megavlm.platform.images import ImageTiles, Tiling, probe
from megavlm.platform.shards import Sample, ShardReader

from ..config import DataConfig, ModelConfig
from .conversation import Chat
from .items import Ragged
from .samples import BadSample, read_conversation
from .templates.base import Template
from .tokenizer import TextTokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A sample that is not drawn, and why. `index`: its number in the set."""

    index: int
    key: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """A shard's samples: int32 [samples] of tokens (0 where rejected) and of those to learn, and how images are cut."""

    tokens: np.ndarray
    targets: np.ndarray
    images: Ragged
    rejected: list[Rejected]


def template(model: ModelConfig, tokenizer: TextTokenizer, written: Template) -> Chat:
    """A recipe's template for a model and its tokenizer: with what its tiles are called and where they go."""
    placement, has_context = model.injection.placement, model.injection.has_context
    tokens = functools.lru_cache(4096)(model.tile_tokens)
    return Chat(written, tokenizer, placement, model.tiling.makes_thumbnails, tokens, has_context)


def tiles_of(image: bytes, tiling: Tiling) -> ImageTiles:
    """How an encoded image will be cut, from its header; raises BadSample."""
    try:
        info = probe(image)
        return tiling.plan(info.width, info.height)
    except InputError as error:
        raise BadSample(f"image_{getattr(error, 'reason', 'unreadable')}", str(error)) from None


@dataclasses.dataclass(frozen=True)
class Measure:
    """Everything that decides a sample's size, as text: it goes to other processes, which remember what it means."""

    model: str
    data: str

    @classmethod
    def of(cls, model: ModelConfig, data: DataConfig) -> Measure:
        """The measure of a recipe."""
        return cls(model.model_dump_json(), data.model_dump_json())

    def shard(self, tar: str, first: int, tick: Callable[[], object] = lambda: None) -> Measured:
        """Measure the samples of one tar, the first of which has number `first` in its set; `tick()` after each."""
        reader = ShardReader(tar)
        chat, tiling = _tools(self)
        sizes = np.zeros((2, len(reader)), np.int32)
        images: list[list[ImageTiles]] = [[]] * len(reader)
        rejected = []
        for number in range(len(reader)):
            sample = reader.read(number)
            try:
                images[number], sizes[:, number] = _size(sample, chat, tiling)
            except BadSample as error:
                rejected.append(Rejected(first + number, sample.key, error.reason, error.what))
            tick()
        ends = np.cumsum([0, *map(len, images)], dtype=np.int64)
        values = np.array([image for each in images for image in each], np.int16)
        return Measured(sizes[0], sizes[1], Ragged(values.reshape(-1, 3), ends), rejected)


def _size(sample: Sample, chat: Chat, tiling: Tiling) -> tuple[list[ImageTiles], tuple[int, int]]:
    """How each image is cut, and (tokens, tokens to learn)."""
    conversation = read_conversation(sample)
    images = [tiles_of(image, tiling) for image in conversation.images]
    encoded = chat.encode(conversation.messages, images)
    return images, (len(encoded.tokens), int(encoded.target.sum()))


@functools.lru_cache(1)
def _tools(measure: Measure) -> tuple[Chat, Tiling]:
    model = ModelConfig.model_validate_json(measure.model)
    data = DataConfig.model_validate_json(measure.data)
    return template(model, load_tokenizer(data.tokenizer), data.template), model.tiling
