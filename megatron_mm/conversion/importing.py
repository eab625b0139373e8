"""Published weights -> a checkpoint that a stage starts from, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from ..checkpoints.durable import flush
from ..checkpoints.listing import COMPLETE, checkpoint_path
from ..checkpoints.safe_load import INDEX
from ..config import ModelConfig
from ..parts import OWNERS
from .accounts import Account, Pair, account, pair_up
from .formats import Format
from .ours import slots
from .published import Published
from .stored import Late, write_tensors

SPARE = 64 * 2**20  # bytes of a disk that are left free


class Source(NamedTuple):
    """Published weights of one format, and the axes that are taken from them."""

    published: Published
    format: Format
    axes: list[str]


class Import(NamedTuple):
    """What will be written: of each source, which tensors.

    `drawn` are the axes, and within an axis the modules and parameters, that none of them holds.
    """

    sources: list[Source]
    accounts: list[Account]
    drawn: list[str]

    @property
    def axes(self) -> list[str]:
        """The axes it holds, whole or but for `drawn`, in the model's order."""
        held = {pair.slot.axis for own in self.accounts for pair in own.pairs}
        return [axis for axis in OWNERS if axis in held]

    @property
    def lacking(self) -> list[str]:
        """Of the axes it holds, what is not in it."""
        return [part for part in self.drawn if part not in OWNERS]

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return size_of(self.tensors())

    def tensors(self) -> list[Late]:
        """The tensors to write, each source's in the order of its files."""
        return [late for source, own in zip(self.sources, self.accounts, strict=True) for late in _late(source, own)]

    def record(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        each = [_record(source, own) for source, own in zip(self.sources, self.accounts, strict=True)]
        return {"sources": each, "parts": self.axes, "drawn": self.drawn, "bytes": self.bytes}


def plan_import(model: ModelConfig, sources: Sequence[Source]) -> Import:
    """Compare everything with everything; raises ConfigError or InputError. Nothing is written, no tensor is read."""
    for source in sources:
        source.format.fits(model)
        if source.published.config is not None:
            source.format.compare(model, source.published.config, str(source.published.path / "config.json"))
    made = [source._replace(format=source.format.of(model)) for source in sources]
    ours = slots(model)
    pairs = [pair_up(source.format, model, ours, source.axes) for source in made]
    _require_apart(made, pairs)
    found = [account(source.format, own, source.published) for source, own in zip(made, pairs, strict=True)]
    held = {(pair.slot.axis, pair.slot.name) for own in pairs for pair in own}
    every = {f"{slot.axis}.{slot.name}": (slot.axis, slot.name) in held for slot in ours}
    return Import(made, found, _lacking(every))


def _lacking(held: Mapping[str, bool]) -> list[str]:
    """Of dotted names, those that are not held; a module of which nothing is held in place of its parameters."""
    present = {name[:end] for name, there in held.items() if there for end in _dots(name)}
    absent = [name for name, there in held.items() if not there]
    short = (next(name[:end] for end in _dots(name) if name[:end] not in present) for name in absent)
    return list(dict.fromkeys(short))


def _dots(name: str) -> list[int]:
    """Where the modules that a dotted name lies in end, and the name itself."""
    return [place for place, letter in enumerate(name) if letter == "."] + [len(name)]


def write_import(plan: Import, run: RunFolder, stage: str) -> Path:
    """Write the stage's checkpoint after 0 steps, and return its folder; raises InputError for a disk too full.

    One that is killed leaves no marker, and the same command begins it anew.
    """
    marker: dict[str, Any] = {"parts": plan.axes}
    if plan.lacking:
        marker["lacking"] = plan.lacking
    return write_start(run, stage, plan.tensors(), marker)


def write_start(run: RunFolder, stage: str, tensors: Sequence[Late], marker: Mapping[str, Any]) -> Path:
    """Write the tensors as the stage's checkpoint after 0 steps; `marker` says what of a model they are, and more."""
    folder = checkpoint_path(run, stage, 0)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free, taken = shutil.disk_usage(folder).free, size_of(tensors)
    if free < taken + SPARE:
        what = f"the checkpoint takes {taken:,} bytes, and the disk has {free:,}"
        raise InputError(what, where=str(folder), fix="make room, or give another --out")
    write_tensors(folder, tensors)
    flush([*(folder / name for name in ("common.pt", "metadata.json", INDEX)), folder, *folder.parents[:2]])
    write_atomic(folder / COMPLETE, json.dumps({"stage": stage, "step": 0, **marker}).encode())
    flush([folder])
    return folder


def size_of(tensors: Sequence[Late]) -> int:
    """Bytes of them all."""
    return sum(late.dtype.itemsize * torch.Size(late.slot.shape).numel() for late in tensors)


def joined(pair: Pair, published: Published) -> Tensor:
    """One of our parameters from published tensors."""
    return pair.join([published.read(name) for name in pair.theirs])


def _late(source: Source, own: Account) -> list[Late]:
    published = source.published
    files = sorted(own.pairs, key=lambda pair: published.tensors[pair.theirs[0]].file)
    dtypes = [getattr(torch, published.tensors[pair.theirs[0]].dtype) for pair in files]
    return [Late(p.slot, dtype, partial(joined, p, published)) for p, dtype in zip(files, dtypes, strict=True)]


def _record(source: Source, own: Account) -> dict[str, Any]:
    return {
        "path": str(source.published.path),
        "format": source.format.name,
        "parts": [axis for axis in source.axes if any(pair.slot.axis == axis for pair in own.pairs)],
        "tensors": sum(len(pair.theirs) for pair in own.pairs),
        "ignored": own.ignored,
        "padded": own.padded,
        "unused": source.published.unused,
    }


def _require_apart(sources: Sequence[Source], pairs: Sequence[Sequence[Pair]]) -> None:
    holders: dict[tuple[str, str], Source] = {}
    for source, own in zip(sources, pairs, strict=True):
        for slot in (pair.slot for pair in own):
            other = holders.setdefault((slot.axis, slot.name), source)
            if other is not source:
                what = f"{other.published.path} and {source.published.path} both hold {slot.said}"
                raise ConfigError(what, where=slot.axis, fix="leave one out, or one's part by --part")
