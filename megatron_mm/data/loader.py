"""Manifest rows -> a process' part of a global batch: random access, decoded ahead, not stopped by a bad sample.

Every process reads the text of its replica's packs, and decodes an equal share of the global batch's tiles, whoever's
packs they belong to. The state is one integer, the step.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from megavlm.platform.errors import InputError
from megavlm.platform.images import decode_tiles
from megavlm.platform.shards import ShardReader

from ..config import ModelConfig
from ..contracts import Context, PackedBatch, StepBatch
from .amounts import amounts
from .assemble import PackArrays, Prepared, assemble, grey, normalised
from .build import StageData
from .context import ContextArrays
from .manifest import Entry, Manifest, Pack
from .measure import template
from .samples import TEXT_FIELDS, BadSample, image_fields, read_messages
from .shares import Seat, Shares, assign, common
from .skips import Skips, batch_of
from .templates.base import Template
from .tokenizer import TextTokenizer

CACHE_BYTES = 512 * 1024**2
AHEAD = 2  # global batches prepared in the background

Report = Callable[..., object]  # report(kind, **fields): RunFolder's Attempt.event
Problem = tuple[int, int]  # row of the manifest, place in the pack


class PackLoader:
    """The packs of a manifest as one process' part of every global batch.

    `report("bad_sample", set=..., key=..., reason=..., row=...)` is called once for every sample found unreadable.
    """

    def __init__(
        self,
        manifest: Manifest,
        sets: Mapping[str, ShardReader],
        model: ModelConfig,
        tokenizer: TextTokenizer,
        chat: Template,
        report: Report = lambda kind, **fields: None,
        normalisation: str = "global_token",
        skips: Skips = Skips(),  # noqa: B008 - frozen
    ) -> None:
        self._normalisation, self._skips = normalisation, skips
        self._manifest, self._sets, self._report = manifest, sets, report
        self._chat, self._everywhere = template(model, tokenizer, chat), model.injection.everywhere
        self._tiling, self._padding = model.tiling, tokenizer.padding
        self._nothing = np.zeros((0, 3, self._tiling.tile, self._tiling.tile), np.uint8)
        self._cache = _Cache(CACHE_BYTES)
        self._decoders = ThreadPoolExecutor(decode_threads(), thread_name_prefix="decode")
        self._reported: set[tuple[str, int]] = set()

    def batch(self, number: int, seat: Seat = Seat(), micro_batches_of: int = 1) -> StepBatch:  # noqa: B008 - frozen
        """What the process at `seat` has of the global batch of this number, from 0. Packs that only fill up make the
        number of a replica's packs a multiple of `micro_batches_of`, and at least one."""
        packs = self._manifest.batch(number)
        replicas = assign([cost(pack) for pack in packs], seat.grid.dp)
        counts = [[packs[k].tiles for k in chosen] for chosen in replicas]
        shares = Shares(seat.grid, counts, self._everywhere)
        problems: list[Problem] = []
        ordered = [packs[k] for chosen in replicas for k in chosen]
        tiles = self._tiles(ordered, shares.decodes(seat.member, seat.tp, seat.tp_rank), problems)
        mine = [packs[k] for k in replicas[seat.grid.place(seat.member)[0]]]
        made = [self._text(pack, problems) for pack in mine]
        missing = max(1, -(-len(mine) // micro_batches_of)) * micro_batches_of - len(mine)
        rows = [*(pack.row for pack in mine), *[None] * missing]
        filled = [*made, *(self._assembled([]) for _ in range(missing))]
        told = amounts(packs, self._manifest.sequence_length)
        return StepBatch(filled, rows, torch.from_numpy(tiles), shares, tuple(sorted(set(problems))), told)

    def batches(self, start: int, stop: int, seat: Seat, micro_batches_of: int = 1) -> Iterator[StepBatch]:
        """The global batches of updates start..stop-1, prepared ahead in one background thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="packs") as pool:

            def prepare(step: int) -> Any:
                return pool.submit(self.batch, batch_of(step, self._skips), seat, micro_batches_of)

            waiting = [prepare(step) for step in range(start, min(start + AHEAD, stop))]
            try:
                for step in range(start, stop):
                    ready = waiting.pop(0).result()
                    if step + AHEAD < stop:
                        waiting.append(prepare(step + AHEAD))
                    yield ready
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _text(self, pack: Pack, problems: list[Problem]) -> PackedBatch:
        """A packed sequence without its tiles."""
        samples = []
        for place, entry in enumerate(pack.entries):
            try:
                samples.append(self._encoded(entry))
            except InputError as error:
                self._tell(entry, error, (pack.row, place), problems)
                samples.append(self._blank(entry))
        return self._assembled(samples)

    def _assembled(self, samples: Sequence[Prepared]) -> PackedBatch:
        length, tile = self._manifest.sequence_length, self._tiling.tile
        arrays = assemble(samples, length, tile, self._padding, self._chat.has_context)
        return to_torch(normalised(arrays, self._normalisation))

    def _blank(self, entry: Entry) -> Prepared:
        return Prepared(self._chat.blank(entry.images, entry.tokens), self._nothing, weight=0.0)

    def _encoded(self, entry: Entry) -> Prepared:
        """A sample's tokens; raises InputError (with a `reason`) when it is not as packed."""
        reader = self._sets[entry.set]
        sample = reader.read(entry.index, only=TEXT_FIELDS)
        messages = read_messages(sample, len(image_fields(reader.fields(entry.index))))
        encoded = self._chat.encode(messages, entry.images)
        if len(encoded.tokens) != entry.tokens:
            raise BadSample("changed", f"{len(encoded.tokens)} tokens, and {entry.tokens} were packed")
        return Prepared(encoded, self._nothing, entry.weight)

    def _tiles(self, packs: Sequence[Pack], wanted: range, problems: list[Problem]) -> np.ndarray:
        """Tiles `wanted` of those of all packs, uint8 [n, 3, side, side]; grey ones where an image does not decode."""
        jobs = [job for job in _images(packs) if len(common(job.tiles, wanted))]
        parts = []
        for job, result in zip(jobs, self._decoders.map(self._try_image, jobs), strict=True):
            found = result
            if isinstance(found, InputError):
                self._tell(job.entry, found, (job.row, job.place), problems)
                found = grey(len(job.tiles), self._tiling.tile)
            run = common(job.tiles, wanted)
            parts.append(found[run.start - job.tiles.start : run.stop - job.tiles.start])
        return np.concatenate([self._nothing, *parts])

    def _try_image(self, job: _Image) -> np.ndarray | InputError:
        key = (job.entry.set, job.entry.index, job.number)
        found = self._cache.get(key)
        if found is None:
            try:
                found = self._image(job)
            except InputError as error:
                return error
            self._cache.put(key, found)
        return found

    def _image(self, job: _Image) -> np.ndarray:
        """The tiles of one image; raises InputError when there is none such, or they are not as many as packed."""
        reader, tiling = self._sets[job.entry.set], self._tiling
        name = image_fields(reader.fields(job.entry.index))[job.number]
        data = reader.read(job.entry.index, only={name}).fields[name]
        tiles = decode_tiles(data, tiling.tile, tiling.min_tiles, tiling.max_tiles, tiling.thumbnail)
        if len(tiles) != len(job.tiles):
            raise BadSample("changed", f"image {name} makes {len(tiles)} tiles, not {len(job.tiles)}")
        return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))

    def _tell(self, entry: Entry, error: InputError, where: Problem, problems: list[Problem]) -> None:
        problems.append(where)
        if (entry.set, entry.index) not in self._reported:
            self._reported.add((entry.set, entry.index))
            reason = getattr(error, "reason", "unreadable")
            self._report(
                "bad_sample", set=entry.set, key=self._key(entry), reason=reason, detail=error.what, row=where[0]
            )

    def _key(self, entry: Entry) -> str:
        try:
            return self._sets[entry.set].key(entry.index)
        except InputError:  # the shard itself is not what it was
            return f"#{entry.index}"


def open_loader(
    spec: StageData,
    manifest: Manifest,
    report: Report = lambda kind, **fields: None,
    skips: Skips = Skips(),  # noqa: B008 - frozen
) -> PackLoader:
    """A loader for a recipe's stage, after the manifest's fingerprint was compared (ConfigError when it differs).

    What the sets hold is not: `ensure_packs` does so once, where every rank would. A shard that has changed since then
    is noticed when it is read.
    """
    manifest.check(spec.fingerprint(), spec.stage.steps + skips.count)
    sets = manifest.open_sets(spec.folders())
    how = spec.stage.loss.normalisation
    return PackLoader(manifest, sets, spec.model, spec.tokenizer(), spec.data.template, report, how, skips)


def decode_threads() -> int:
    """This process' share of the machine's cores."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cost(pack: Pack) -> float:
    """What tells packs of one length apart: attention sees the square of each sample's length."""
    return float(sum(entry.tokens**2 for entry in pack.entries))


def to_torch(arrays: PackArrays) -> PackedBatch:
    """Add the batch axis of one and hand the arrays over without a copy."""
    tensors = _tensors(arrays, ("tokens", "labels", "loss_weights", "position_ids"))
    context = None if arrays.context is None else Context(**_tensors(arrays.context, ("tags",)))
    return PackedBatch(**tensors, context=context)


def _tensors(arrays: PackArrays | ContextArrays, with_batch_axis: Sequence[str]) -> dict[str, Any]:
    values = {f.name: getattr(arrays, f.name) for f in dataclasses.fields(arrays)}
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return tensors | {name: tensors[name][None] for name in with_batch_axis}


@dataclasses.dataclass(frozen=True)
class _Image:
    """One image of a global batch, and which of its tiles are this image's."""

    row: int
    place: int  # of the sample in its pack
    entry: Entry
    number: int  # of the image in its sample
    tiles: range


def _images(packs: Sequence[Pack]) -> Iterator[_Image]:
    start = 0
    for pack in packs:
        for place, entry in enumerate(pack.entries):
            for number, end in enumerate(accumulate((image.tiles for image in entry.images), initial=start)):
                if number:
                    yield _Image(pack.row, place, entry, number - 1, range(start, end))
                    start = end


class _Cache:
    """The images used last, up to a number of bytes: a small set is decoded once, a large one costs no memory."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._items: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> np.ndarray | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: Hashable, value: np.ndarray) -> None:
        with self._lock:
            self._held += value.nbytes - (self._items[key].nbytes if key in self._items else 0)
            self._items[key] = value
            while self._held > self._limit and len(self._items) > 1:
                self._held -= self._items.popitem(last=False)[1].nbytes
