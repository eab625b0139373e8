"""A model's weights out of checkpoints, for whoever goes on with them: a next stage, an evaluation, a generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.core.dist_checkpointing import load_tensors_metadata
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megavlm.platform.errors import InputError

from ..injection.copies import original
from ..parts import place_of
from .safe_load import check_index, load_state

if TYPE_CHECKING:
    from ..model import VisionLanguageModel

MOST_PADDING = 64  # rows of a vocabulary that only make it divide by tensor parallelism
Skip = Callable[[str, str], bool]
Shapes = Mapping[str, tuple[int, ...]]
Weights = dict[str, dict[str, Any]]  # part of the model -> name -> what megatron-core calls a sharded tensor


def fill(model: VisionLanguageModel, *folders: Path, skip: Skip = lambda axis, inside: False) -> None:
    """Read this rank's part of every weight, whatever layout wrote it: each from the last of `folders` that holds it.

    One that none of them holds, and that begins as a copy of another, is read as that other one. Those that `skip`
    names, by axis and name in it, stay as they are. What FP8 keeps beside the weights is not read. Raises InputError
    naming the first weight that no checkpoint holds or that has another shape there, or when a checkpoint holds more
    than tensors.
    """
    wanted = {part: dict(_wanted(model, state, skip)) for part, state in model.sharded_state_dict().items()}
    shapes = {folder: shapes_of(folder) for folder in folders}
    copies = {part: dict(_copies(model, state, shapes)) for part, state in wanted.items()}
    own = {part: {k: v for k, v in state.items() if k not in copies[part]} for part, state in wanted.items()}
    for state in (own, copies):  # apart: megatron-core refuses one tensor for two weights
        _read(model, state, shapes)


def _read(model: VisionLanguageModel, wanted: Weights, shapes: dict[Path, Shapes]) -> None:
    sources = {
        (part, name): _holder(name, value, shapes, model.spec.decoder.vocab)
        for part, state in wanted.items()
        for name, value in state.items()
    }
    for folder in shapes:
        of = {part: {k: v for k, v in state.items() if sources[part, k] == folder} for part, state in wanted.items()}
        if any(of.values()):
            found = load_state(of, folder)
            model.load_parts({part: found.get(part, {}) for part in wanted})


def _copies(model: VisionLanguageModel, state: dict[str, Any], shapes: dict[Path, Shapes]) -> Iterator[tuple[str, Any]]:
    """Those weights that no checkpoint holds and that begin as copies, under the key of what they are copies of."""
    for name, value in state.items():
        key = _first(value).key
        other = original(model.spec, key)
        if other is not None and not any(key in held for held in shapes.values()):
            yield name, replace(value, key=other)


def _wanted(model: VisionLanguageModel, state: dict[str, Any], skip: Skip) -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        is_weight = isinstance(value, ShardedTensor | ShardedTensorFactory)
        if is_weight and not skip(*place_of(model.spec, name)):
            yield name, value


def shapes_of(folder: Path) -> Shapes:
    """Every tensor of a checkpoint with its whole shape."""
    check_index(folder)
    return {key: tuple(tensor.global_shape) for key, tensor in load_tensors_metadata(str(folder)).items()}


def _holder(name: str, value: Any, shapes: dict[Path, Shapes], vocab: int) -> Path:
    """The last checkpoint that holds a weight in its shape; a table may be padded for another layout."""
    first = _first(value)
    key, shape = first.key, tuple(first.global_shape)
    for folder in reversed(shapes):
        held = shapes[folder].get(key, ())
        is_padded = first.allow_shape_mismatch and held[1:] == shape[1:] and 0 <= held[0] - vocab < MOST_PADDING
        if held == shape or is_padded:
            return folder
    where = ", ".join(map(str, shapes))
    others = [held[key] for held in shapes.values() if key in held]
    if others:
        raise InputError(
            f"weight '{name}' is {list(shape)} here and {list(others[-1])} there", where=where, fix=_fix(name)
        )
    raise InputError(f"no checkpoint has a weight '{name}'", where=where, fix=_fix(name))


def _fix(name: str) -> str:
    return f"is it this model's? A stage that begins '{name.partition('.')[0]}' anew names it in `fresh`"


def _first(value: Any) -> ShardedTensor:
    """A weight as a checkpoint knows it: its name and whole shape."""
    first = value.build() if isinstance(value, ShardedTensorFactory) else value
    return first[0] if isinstance(first, list) else first
