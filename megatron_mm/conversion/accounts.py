"""Every tensor accounted for: which published ones make which of ours, and what is missing, left over or misshapen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megavlm.platform.errors import InputError, MegaVLMError

from ..config import ModelConfig
from .formats import Format
from .ours import Slot
from .published import Published
from .rules import WeightMap
from .transforms import Shape, Transform

SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Pair:
    """A parameter of ours, the published tensors that make it, and how."""

    slot: Slot
    theirs: tuple[str, ...]
    how: Transform
    spec: Any

    def published_shapes(self) -> list[Shape]:
        """The shapes of `theirs`."""
        return [tuple(part.shape) for part in self.split(torch.empty(self.slot.shape, device="meta"))]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Ours from theirs."""
        return self.how.join(parts, self.slot.shape, self.spec)

    def split(self, whole: Tensor) -> list[Tensor]:
        """Theirs from ours."""
        return self.how.split(whole, self.spec)


class Account(NamedTuple):
    """What an import does with the published tensors: `ignored` by name with the reason, `padded` with zeros."""

    pairs: list[Pair]
    ignored: dict[str, str]
    padded: list[str]


def pair_up(fmt: Format, model: ModelConfig, slots: Iterable[Slot], axes: Iterable[str]) -> list[Pair]:
    """The pairs of `axes` in the model's order, for a format made for `model`.

    Raises MegaVLMError for a parameter without a published tensor.
    """
    wanted, pairs = set(axes), []
    for slot in slots:
        if slot.axis not in wanted or not fmt.covers(slot.axis, slot.name):
            continue
        found = fmt.maps[slot.axis].made_of(slot.name)
        if found is None and fmt.maps[slot.axis].is_drawn(slot.name):
            continue
        if found is None:
            what = f"format {fmt.name} has no tensor for '{slot.name}'"
            raise MegaVLMError(
                what, where=f"model.{slot.axis}", fix="choose the format that this model was published in"
            )
        pairs.append(Pair(slot, *found, fmt.spec(model, slot.axis)))
    return pairs


def account(fmt: Format, pairs: Sequence[Pair], published: Published) -> Account:
    """Compare names and shapes; raises InputError naming what is missing, unexpected, misshapen, or no number."""
    shapes = {name: shape for pair in pairs for name, shape in zip(pair.theirs, pair.published_shapes(), strict=True)}
    axes = {pair.slot.axis for pair in pairs}
    missing = [name for name in shapes if name not in published.tensors]
    left = [name for name in published.tensors if name not in shapes]
    ignored = {name: why for name in left if (why := _why_ignored(fmt, axes, name))}
    unexpected = [name for name in left if name not in ignored]
    _refuse("lacks tensors that the model has", missing, published, "is it this model's? see the recipe's sizes")
    _refuse("has tensors that the model lacks", unexpected, published, "is it this model's? see the recipe's sizes")
    padded = _check_shapes(pairs, shapes, published)
    _check_dtypes(pairs, published)
    return Account(list(pairs), ignored, padded)


def _why_ignored(fmt: Format, axes: set[str], name: str) -> str | None:
    """Why a tensor that makes no parameter is left out, in the words of its own axis where that is asked for."""
    others = {axis: table for axis, table in fmt.maps.items() if axis not in axes}
    other = next((axis for axis, table in others.items() if table.names(name)), None)
    why = _reason([fmt.maps[axis] for axis in axes], name)
    if why or other is None:
        return why or _reason(others.values(), name)
    return f"of the {other}, which was not asked for"


def _reason(maps: Iterable[WeightMap], name: str) -> str | None:
    return next((why for table in maps if (why := table.why_ignored(name))), None)


def _check_shapes(pairs: Sequence[Pair], shapes: Mapping[str, Shape], published: Published) -> list[str]:
    """The parameters that get rows of zeros."""
    padded = []
    for pair in pairs:
        for name in pair.theirs:
            found, wanted = published.tensors[name].shape, shapes[name]
            if not pair.how.fits(wanted, found):
                what = f"'{name}' is {list(found)}, and the model's {pair.slot.axis} makes it {list(wanted)}"
                raise InputError(what, where=str(published.tensors[name].file), fix="set the recipe's sizes to it")
            if found != wanted:
                padded.append(f"{name}: {found[0]} rows of {wanted[0]}")
    return padded


def _check_dtypes(pairs: Sequence[Pair], published: Published) -> None:
    for pair in pairs:
        kinds = {published.tensors[name].dtype for name in pair.theirs}
        if len(kinds) > 1 or not isinstance(getattr(torch, min(kinds), None), torch.dtype):
            what = f"'{pair.theirs[0]}' is of dtype {', '.join(sorted(kinds))}"
            raise InputError(
                what, where=str(published.path), fix="quantised weights are not read: take the original ones"
            )


def _refuse(what: str, names: list[str], published: Published, fix: str) -> None:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise InputError(f"{what}: {', '.join(names[:SHOWN])}{more}", where=str(published.path), fix=fix)
