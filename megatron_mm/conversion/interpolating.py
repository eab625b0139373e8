"""Weights between a trained model and its backbone, tensor by tensor: weight * trained + (1 - weight) * backbone.

WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903): on the straight line between a model and what was fine-tuned from it,
one often finds most of what was learnt and most of what would be forgotten. Sums are in float32; at 1 and at 0 the
result is the one or the other, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from megavlm.platform.errors import InputError

from ..checkpoints.listing import Source, lacking_of
from ..config import ModelConfig
from .backbone import Blend, model_of, require_alike
from .formats import format_of
from .importing import Source as Pick
from .importing import joined, plan_import
from .ours import Slot
from .published import Published
from .start import parts_of, within
from .stored import Late, Stored
from .transforms import VocabRows

TABLES = ("embedding.word_embeddings.weight", "output_layer.weight")  # of the decoder: a row per token


class Backbone(Protocol):
    """The other side's weights."""

    def read(self, slot: Slot) -> Tensor:
        """The parameter, [*slot.shape]; of a smaller vocabulary, the rows that it has."""


class Interpolated:
    """A checkpoint's weights with those of the blend's parts mixed; read as a `Stored` is."""

    def __init__(self, stored: Stored, blend: Blend, model: ModelConfig, own: Sequence[Slot]) -> None:
        """`own`: the slots of `model`. Raises ConfigError or InputError where the sides do not match, by name."""
        self._stored, self._weight = stored, blend.weight
        mixed = [slot for slot in own if slot.axis in blend.parts]
        empty = next((part for part in blend.parts if not any(slot.axis == part for slot in mixed)), None)
        if empty:
            raise InputError(f"the model's {empty} has no weights to mix", where=str(stored.folder))
        self._backbone: Backbone = (
            _OfFolder(blend.backbone, model, mixed)
            if isinstance(blend.backbone, Published)
            else _OfCheckpoint(blend.backbone, model, mixed)
        )
        self.mixed = frozenset((slot.axis, slot.name) for slot in mixed)

    def dtype(self, slot: Slot) -> torch.dtype:
        """What the trained parameter is stored as."""
        return self._stored.dtype(slot)

    def read(self, slot: Slot) -> Tensor:
        """[*slot.shape]: float32 where both sides were mixed, else as it is stored."""
        trained = self._stored.read(slot)
        if self._weight == 1 or (slot.axis, slot.name) not in self.mixed:
            return trained
        return mix(self._weight, trained, self._backbone.read(slot))


def mix(weight: float, trained: Tensor, backbone: Tensor) -> Tensor:
    """float32 of trained's shape; rows that the backbone lacks, behind its own, stay trained's."""
    if trained.shape == backbone.shape:
        return backbone if weight == 0 else weight * trained.float() + (1 - weight) * backbone.float()
    rows = len(backbone)
    return torch.cat([mix(weight, trained[:rows], backbone).float(), trained[rows:].float()])


def tensors(interpolated: Interpolated, stored: Stored, own: Sequence[Slot]) -> list[Late]:
    """What a checkpoint of the interpolated weights holds, each in the trained parameter's dtype."""

    def late(slot: Slot) -> Late:
        dtype = stored.dtype(slot)
        return Late(slot, dtype, lambda: interpolated.read(slot).to(dtype))

    return [late(slot) for slot in own]


def held_by(source: Source, own: Sequence[Slot]) -> list[Slot]:
    """Of a model's slots those that a checkpoint holds: one that was imported may lack axes, or parts of them."""
    parts, lacking = parts_of(source.checkpoint), lacking_of(source.checkpoint)
    return [slot for slot in own if slot.axis in parts and not within(f"{slot.axis}.{slot.name}", lacking)]


class _OfCheckpoint:
    """A checkpoint of another stage or run, whose decoder may have fewer rows in its vocabulary."""

    def __init__(self, source: Source, model: ModelConfig, mixed: Sequence[Slot]) -> None:
        require_alike(model, source, tuple(dict.fromkeys(slot.axis for slot in mixed)))
        self._stored, self._vocab = Stored(source.checkpoint), model_of(source).decoder.vocab
        if self._vocab > model.decoder.vocab:
            raise InputError(
                f"the backbone's vocabulary has {self._vocab} rows, and the trained model's {model.decoder.vocab}",
                where=str(source.checkpoint),
                fix="give the backbone that the training started from",
            )
        for slot in mixed:
            self._check(self._there(slot))

    def read(self, slot: Slot) -> Tensor:
        return self._stored.read(self._there(slot))

    def _there(self, slot: Slot) -> Slot:
        is_table = slot.axis == "decoder" and slot.name in TABLES
        return slot._replace(shape=(self._vocab, *slot.shape[1:])) if is_table else slot

    def _check(self, slot: Slot) -> None:
        held, wanted = self._stored.shape(slot), slot.among + slot.shape
        is_padded = slot.name in TABLES and held[1:] == wanted[1:] and held[0] >= wanted[0]
        if held != wanted and not is_padded:
            raise InputError(
                f"{slot.said} is {list(wanted)}, and the backbone's '{slot.key}' {list(held)}",
                where=str(self._stored.folder),
                fix="give the backbone that the training started from",
            )


class _OfFolder:
    """Published weights, whose tables may have fewer rows."""

    def __init__(self, published: Published, model: ModelConfig, mixed: Sequence[Slot]) -> None:
        fmt = format_of(published, None)
        axes = [axis for axis in fmt.maps if any(slot.axis == axis for slot in mixed)]
        (found,) = plan_import(model, [Pick(published, fmt, axes)]).accounts
        self._published = published
        self._pairs = {(pair.slot.axis, pair.slot.name): pair for pair in found.pairs}
        lacking = [slot.said for slot in mixed if (slot.axis, slot.name) not in self._pairs]
        if lacking:
            what = f"format {fmt.name} has no {lacking[0]}" + (f", nor {len(lacking) - 1} more" if lacking[1:] else "")
            raise InputError(what, where=str(published.path), fix="leave that part out, or give the whole model")

    def read(self, slot: Slot) -> Tensor:
        pair = self._pairs[slot.axis, slot.name]
        whole = joined(pair, self._published)
        return whole[: self._published.tensors[pair.theirs[0]].shape[0]] if isinstance(pair.how, VocabRows) else whole
