"""A checkpoint -> published weights: safetensors shards, their index, and the configuration files of the format."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.storage import safe_join

from ..checkpoints.durable import flush
from ..data.build import StageData
from .accounts import Pair, pair_up
from .backbone import Blend
from .formats import Constant, Format, as_json
from .interpolating import Interpolated
from .ours import slots
from .stored import Stored

INDEX = "model.safetensors.index.json"
BLEND = "interpolation.json"  # whose weights were mixed, and how


class Still(NamedTuple):
    """A constant of the format, to be written as a parameter's parts are."""

    constant: Constant

    @property
    def theirs(self) -> tuple[str, ...]:
        """Its name."""
        return (self.constant.name,)

    def published_shapes(self) -> list[tuple[int, ...]]:
        """Its shape."""
        return [self.constant.shape]


class Export(NamedTuple):
    """What will be written: parameters and the format's constants by shard, all of them as `dtype`."""

    format: Format
    spec: StageData
    stored: Stored | Interpolated
    shards: list[list[Pair | Still]]
    dtype: torch.dtype
    beside: dict[str, bytes]  # the files that are no weights, by name

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(_bytes(pair, self.dtype) for shard in self.shards for pair in shard)

    @property
    def names(self) -> list[str]:
        """The weight files."""
        count = len(self.shards)
        if count == 1:
            return ["model.safetensors"]
        return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]

    def record(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        tensors = sum(len(pair.theirs) for shard in self.shards for pair in shard)
        dtype = str(self.dtype).removeprefix("torch.")
        return {
            "format": self.format.name,
            "tensors": tensors,
            "bytes": self.bytes,
            "dtype": dtype,
            "files": self.names,
            "constants": [pair.constant.name for shard in self.shards for pair in shard if isinstance(pair, Still)],
            "notes": self.format.notes(self.names),
        }


def plan_export(
    fmt: Format,
    spec: StageData,
    checkpoint: Path,
    max_shard: int,
    dtype: torch.dtype | None = None,
    blend: Blend | None = None,
) -> Export:
    """Raises ConfigError where the model is not of that format, InputError where the checkpoint lacks a weight of it.

    `max_shard` is in bytes; a larger tensor is a shard of its own. Without `dtype`, that of the checkpoint's weights,
    of which the format's files can name one. With a `blend`, the checkpoint's weights are mixed with its backbone's.
    """
    if not fmt.written:
        fix = "choose the format of the whole model, or megavlm"
        raise ConfigError(f"format {fmt.name} is read, and not written", where="--format", fix=fix)
    fmt.fits(spec.model)
    fmt = fmt.of(spec.model)
    own = slots(spec.model)
    stored = Interpolated(Stored(checkpoint), blend, spec.model, own) if blend else Stored(checkpoint)
    pairs = pair_up(fmt, spec.model, own, fmt.maps)
    kinds = {stored.dtype(pair.slot) for pair in pairs}
    if dtype is None and len(kinds) > 1:
        said = ", ".join(sorted(str(kind) for kind in kinds))
        raise ConfigError(f"the checkpoint's weights are of several dtypes: {said}", fix="choose one with --dtype")
    kind = dtype or kinds.pop()
    beside = fmt.files(spec, str(kind).removeprefix("torch."))  # before the weights: what cannot be said is told first
    if blend:
        beside[BLEND] = as_json(blend.record())
    pairs.sort(key=lambda pair: _rank(pair, fmt.order))
    still = [Still(constant) for constant in fmt.constants(spec.model)]  # before: some readers want a part in the end
    return Export(fmt, spec, stored, list(_sharded([*still, *pairs], max_shard, kind)), kind, beside)


def write_export(plan: Export, out: Path) -> None:
    """Write everything to `out`, which appears when it is whole; at most one shard is in memory.

    Raises ConfigError when `out` is there already, InputError for a disk too full.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already", where="--out", fix="give a folder that is not")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed one left
    part.mkdir(parents=True)
    free = shutil.disk_usage(part).free
    if free < plan.bytes:
        what = f"the export takes {plan.bytes:,} bytes, and the disk has {free:,}"
        raise InputError(what, where=str(out), fix="make room, or give another --out")
    for name, shard in zip(plan.names, plan.shards, strict=True):
        save_file(_tensors(shard, plan), part / name, metadata={"format": "pt"})
    for name, content in _beside(plan).items():
        safe_join(part, name).write_bytes(content)
    flush([*part.iterdir(), part])
    part.rename(out)


def _tensors(shard: Sequence[Pair | Still], plan: Export) -> dict[str, Tensor]:
    found = {}
    for pair in shard:
        parts = [pair.constant.make()] if isinstance(pair, Still) else pair.split(plan.stored.read(pair.slot))
        for name, part in zip(pair.theirs, parts, strict=True):
            found[name] = part.to(plan.dtype, copy=True, memory_format=torch.contiguous_format)
    return found


def _beside(plan: Export) -> dict[str, bytes]:
    """The format's files, and the index where there are several shards."""
    if len(plan.shards) == 1:
        return plan.beside
    weight_map = {
        tensor: name
        for name, shard in zip(plan.names, plan.shards, strict=True)
        for pair in shard
        for tensor in pair.theirs
    }
    return plan.beside | {INDEX: as_json({"metadata": {"total_size": plan.bytes}, "weight_map": weight_map})}


def _sharded(pairs: Sequence[Pair | Still], max_shard: int, dtype: torch.dtype) -> Iterator[list[Pair | Still]]:
    """The pairs in order, in shards of at most so many bytes."""
    shard: list[Pair | Still] = []
    filled = 0
    for pair in pairs:
        size = _bytes(pair, dtype)
        if shard and filled + size > max_shard:
            yield shard
            shard, filled = [], 0
        shard.append(pair)
        filled += size
    yield shard


def _rank(pair: Pair, order: Sequence[str]) -> int:
    name = f"{pair.slot.axis}.{pair.slot.name}"
    return max((place for place, begin in enumerate(order) if name.startswith(begin)), default=-1)


def _bytes(pair: Pair | Still, dtype: torch.dtype) -> int:
    return dtype.itemsize * sum(torch.Size(shape).numel() for shape in pair.published_shapes())
