"""The items of a held-out set: questions with their expected answers, and which image each of them is shown.

Loads no torch. An item is a sample of a shard whose last message is the assistant's answer; its json may also hold
"id" (else the sample's key), "kind" (the question type) and "answer" (the same text as the last message).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from megavlm.platform.errors import InputError
from megavlm.platform.images import ImageTiles, Tiling, decode
from megavlm.platform.shards import ShardReader

from ..data.assemble import Prepared, shown
from ..data.conversation import Chat
from ..data.encoded import Encoded
from ..data.measure import tiles_of
from ..data.samples import BadSample, Conversation, Message, read_conversation
from .predictions import Prediction


@dataclasses.dataclass(frozen=True)
class ImageRef:
    """An image of a set: which sample holds it, its place there, the hash of its bytes, how it is cut."""

    sample: int
    place: int
    digest: bytes
    tiles: ImageTiles


@dataclasses.dataclass(frozen=True)
class Item:
    """One question: its number in the set, what the model is to say, and the images it is shown."""

    index: int
    id: str
    kind: str
    expected: str
    messages: list[Message]
    images: tuple[ImageRef, ...]

    def encode(self, chat: Chat) -> Encoded:
        """Token ids of the whole conversation, where only the LAST answer and its end marker are targets."""
        encoded = chat.encode(self.messages, [image.tiles for image in self.images])
        return dataclasses.replace(encoded, target=_last_run(encoded.target))

    def failed(self, reason: str) -> Prediction:
        """The prediction of an item that cannot be shown: wrong, with the reason."""
        return Prediction(self.id, self.kind, False, "", self.expected, problem=reason)


def read_items(
    reader: ShardReader, tiling: Tiling, *, shuffle_images: bool = False
) -> tuple[list[Item], list[Prediction]]:
    """All items of a set in its order, and the predictions of those that cannot be used, with their reasons.

    `shuffle_images` shows every item other images (`derange`). Raises InputError when an id is given twice, since
    predictions are paired by id, or when shuffling is asked of a set with fewer than two different images.
    """
    found = [_read(reader, index, key, tiling) for index, key in enumerate(reader.keys())]
    _check_ids([item.id for item in found])
    items = [item for item in found if isinstance(item, Item)]
    problems = [item for item in found if isinstance(item, Prediction)]
    return (derange(items) if shuffle_images else items), problems


def derange(items: Sequence[Item]) -> list[Item]:
    """The blind control: every image is replaced by another one of the set, always the same.

    The different images stand in a circle in order of appearance, and each is replaced by the one half a turn on, so
    that no item keeps its image, not even when several questions share it. Items without images stay as they are.
    """
    different = {image.digest: image for item in items for image in item.images}
    circle = list(different.values())
    if len(circle) == 1:
        raise InputError(
            "the set holds one image only, which cannot be exchanged for another", fix="use a set with more images"
        )
    turn = len(circle) // 2
    other = {image.digest: circle[(place + turn) % len(circle)] for place, image in enumerate(circle)}
    return [dataclasses.replace(item, images=tuple(other[image.digest] for image in item.images)) for item in items]


def prepare_item(reader: ShardReader, item: Item, chat: Chat, tiling: Tiling) -> Prepared:
    """Decode and tile the item's images; raises InputError (with a `reason`) when one does not decode."""
    raw = [read_conversation(reader.read(image.sample)).images[image.place] for image in item.images]
    return shown(item.encode(chat), [tiling.cut(decode(data)) for data in raw], weight=1.0)


def _read(reader: ShardReader, index: int, key: str, tiling: Tiling) -> Item | Prediction:
    sample = reader.read(index)
    told = _document(sample.fields.get("json"))
    name, kind = str(told.get("id", key)), str(told.get("kind", ""))
    try:
        conversation = read_conversation(sample)
        expected = _expected(conversation, told)
        images = tuple(
            ImageRef(index, place, hashlib.sha256(data).digest(), tiles_of(data, tiling))
            for place, data in enumerate(conversation.images)
        )
    except BadSample as error:
        return Prediction(name, kind, False, "", str(told.get("answer", "")), problem=error.reason)
    return Item(index, name, kind, expected, conversation.messages, images)


def _document(raw: bytes | None) -> dict[str, Any]:
    try:
        document = json.loads(raw or b"{}")
    except ValueError:
        return {}  # read_conversation names the reason
    return document if isinstance(document, dict) else {}


def _expected(conversation: Conversation, told: dict[str, Any]) -> str:
    last = conversation.messages[-1]
    if told.get("answer", last["content"]) != last["content"]:
        raise BadSample("two_answers", f"answer is {told['answer']!r}, and the last message {last['content']!r}")
    return last["content"]


def _check_ids(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"item '{name}' is in the set twice", fix="give every sample of a held-out set its own id")
        seen.add(name)


def _last_run(target: np.ndarray) -> np.ndarray:
    """Bool [n] -> the same with only the last stretch of True kept."""
    last = np.flatnonzero(target)[-1]
    before = np.flatnonzero(~target[:last])
    kept = np.zeros_like(target)
    kept[(before[-1] + 1 if len(before) else 0) : last + 1] = True
    return kept
