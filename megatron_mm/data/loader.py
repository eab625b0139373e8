"""Manifest rows -> micro-batches: random access, prefetched, not stopped by a bad sample; the state is one integer."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from megavlm.platform.errors import InputError
from megavlm.platform.images import decode_tiles
from megavlm.platform.shards import ShardReader

from ..config import ModelConfig, Tiling
from ..contracts import PackedBatch
from .assemble import PackArrays, Prepared, assemble, blank
from .build import StageData
from .conversation import ChatML
from .manifest import Entry, Manifest
from .measure import template
from .samples import BadSample, read_conversation
from .tokenizer import TextTokenizer

CACHE_BYTES = 512 * 1024**2
AHEAD = 2  # global batches prepared in the background

Report = Callable[..., object]  # report(kind, **fields): RunFolder's Attempt.event


class PackLoader:
    """The packs of a manifest as micro-batches.

    `report("bad_sample", set=..., key=..., reason=..., row=...)` is called once for every sample that was replaced.
    """

    def __init__(
        self,
        manifest: Manifest,
        sets: Mapping[str, ShardReader],
        model: ModelConfig,
        tokenizer: TextTokenizer,
        system: str = "",
        report: Report = lambda kind, **fields: None,
    ) -> None:
        self._manifest, self._sets, self._report = manifest, sets, report
        self._chat = template(model, tokenizer, system)
        self._tiling, self._tokens_per_tile = model.tiling, model.tokens_per_tile
        self._padding = tokenizer.padding
        self._cache = _Cache(CACHE_BYTES)
        self._reported: set[tuple[str, int]] = set()

    def row(self, row: int) -> PackedBatch:
        """Packed sequence `row` as one micro-batch."""
        pack = self._manifest[row]
        samples = [self._sample(entry, row) for entry in pack.samples]
        arrays = assemble(samples, self._manifest.sequence_length, self._tiling.tile, self._padding)
        return to_torch(arrays)

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> list[PackedBatch]:
        """The micro-batches that data-parallel rank `rank` of `ranks` has in global batch `step` (from 0)."""
        per_rank = self._manifest.packs_per_batch // ranks
        first = step * self._manifest.packs_per_batch + rank * per_rank
        return [self.row(first + k) for k in range(per_rank)]

    def batches(self, start: int, stop: int, rank: int = 0, ranks: int = 1) -> Iterator[list[PackedBatch]]:
        """Global batches start..stop-1, prepared ahead in one background thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="packs") as pool:
            waiting = [pool.submit(self.batch, step, rank, ranks) for step in range(start, min(start + AHEAD, stop))]
            try:
                for step in range(start, stop):
                    ready = waiting.pop(0).result()
                    if step + AHEAD < stop:
                        waiting.append(pool.submit(self.batch, step + AHEAD, rank, ranks))
                    yield ready
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _sample(self, entry: Entry, row: int) -> Prepared:
        key = (entry.set, entry.index)
        found = self._cache.get(key)
        if found is None:
            found = self._prepare(entry, row)
            self._cache.put(key, found)
        return dataclasses.replace(found, weight=found.weight and entry.weight)

    def _prepare(self, entry: Entry, row: int) -> Prepared:
        try:
            return prepare(self._sets[entry.set], entry, self._chat, self._tiling)
        except InputError as error:
            if (entry.set, entry.index) not in self._reported:
                self._reported.add((entry.set, entry.index))
                reason = getattr(error, "reason", "unreadable")
                self._report("bad_sample", set=entry.set, key=entry.key, reason=reason, detail=error.what, row=row)
            return blank(entry.tokens, entry.tiles, self._tokens_per_tile, self._tiling.tile, self._padding)


def open_loader(spec: StageData, manifest: Manifest, report: Report = lambda kind, **fields: None) -> PackLoader:
    """A loader for a recipe's stage, after the manifest's fingerprint was compared (ConfigError when it differs)."""
    sets = spec.open_sets()
    manifest.check(spec.fingerprint(sets), spec.packs_needed())
    return PackLoader(manifest, sets, spec.model, spec.tokenizer(), spec.data.system, report)


def prepare(reader: ShardReader, entry: Entry, chat: ChatML, tiling: Tiling) -> Prepared:
    """Read, decode, tile and tokenise one sample; raises InputError (with a `reason`) when it is not as packed."""
    sample = reader.read(entry.index)
    conversation = read_conversation(sample)
    shape = (tiling.tile, tiling.min_tiles, tiling.max_tiles, tiling.thumbnail)
    images = [decode_tiles(image, *shape) for image in conversation.images]
    encoded = chat.encode(conversation.messages, [len(tiles) for tiles in images])
    if (sample.key, len(encoded.tokens), encoded.tiles) != (entry.key, entry.tokens, entry.tiles):
        raise BadSample("changed", f"'{entry.key}' is not what was packed: {sample.key}, {len(encoded.tokens)} tokens")
    stacked = np.concatenate(images) if images else np.zeros((0, tiling.tile, tiling.tile, 3), np.uint8)
    return Prepared(encoded, np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)), weight=1.0)


def to_torch(arrays: PackArrays) -> PackedBatch:
    """Add the batch axis of one and hand the arrays over without a copy."""
    with_batch_axis = ("tokens", "labels", "loss_weights", "position_ids")
    tensors: dict[str, Any] = {f.name: torch.from_numpy(getattr(arrays, f.name)) for f in dataclasses.fields(arrays)}
    return PackedBatch(**tensors | {name: tensors[name][None] for name in with_batch_axis})


class _Cache:
    """The samples used last, up to a number of bytes: a small set is decoded once, a large one costs no memory."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._items: OrderedDict[tuple[str, int], Prepared] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> Prepared | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: tuple[str, int], value: Prepared) -> None:
        with self._lock:
            self._items[key] = value
            self._held += value.bytes
            while self._held > self._limit and len(self._items) > 1:
                self._held -= self._items.popitem(last=False)[1].bytes
