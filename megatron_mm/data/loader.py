"""Manifest rows -> a process' part of a global batch: random access, decoded ahead, not stopped by a bad sample.

Every process reads the text of its replica's packs, and decodes an equal share of the global batch's tiles, whoever's
packs they belong to. The state is one integer, the step.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from megavlm.platform.errors import InputError
from megavlm.platform.images import ImageDecoder, ImageTiles, load_decoder
from megavlm.platform.shards import ShardReader

from ..config import ModelConfig
from ..contracts import PackedBatch, Sizes, StepBatch
from ..tiles import Tiles, as_tiles
from .amounts import amounts
from .as_torch import to_torch
from .assemble import Prepared, assemble, normalised
from .build import StageData
from .decoding import Picture, TileLoader, pictures
from .manifest import Entry, Manifest, Pack, substitute
from .measure import template
from .samples import TEXT_FIELDS, BadSample, image_fields, read_messages
from .shares import Grid, Seat, Shares, assign
from .skips import Skips, batch_of
from .stand_ins import Bad, Found, Place, StandIns, places_of
from .templates.base import Template
from .tokenizer import TextTokenizer

AHEAD = 2  # global batches prepared in the background

Report = Callable[..., object]  # report(kind, **fields): RunFolder's Attempt.event
Agree = Callable[[Sequence[Bad]], set[Bad]]  # what any process says, on all of them


class PackLoader:
    """The packs of a manifest as one process' part of every global batch.

    `report("bad_sample", set=..., key=..., reason=..., detail=..., row=..., instead=...)` is called once for every
    sample that `settled` finds unreadable, by one process. instead: the key of what takes its place in that row; None
    where nothing does.
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
        decoder: str | ImageDecoder = "exact",
    ) -> None:
        self._normalisation, self._skips = normalisation, skips
        self._manifest, self._sets, self._report = manifest, sets, report
        self._chat, self._model = template(model, tokenizer, chat), model
        thumbnail = model.tiling.makes_thumbnails
        self._beside = functools.cache(lambda image: model.injection.context_tiles(image, thumbnail))
        self._padding = tokenizer.padding
        self._images = TileLoader(sets, model.tiling, load_decoder(decoder))
        self._numbers = {told["name"]: number for number, told in enumerate(manifest.sets)}
        self._bad: frozenset[Bad] = frozenset()  # what all processes know to be unreadable
        self._found: dict[int, dict[Bad, Found]] = {}  # by global batch, what this one found and no other knows yet

    def batch(self, number: int, seat: Seat = Seat(), micro_batches_of: int = 1) -> StepBatch:  # noqa: B008 - frozen
        """What the process at `seat` has of the global batch of this number, from 0. Packs that only fill up make the
        number of a replica's packs a multiple of `micro_batches_of`, and at least one.

        Where a sample turns out unreadable nothing is learnt; `settled` puts its substitute there.
        """
        packs = self._manifest.batch(number)
        stand_ins = StandIns(packs, self._numbers, self._bad)
        replicas = assign([cost(pack) for pack in packs], seat.grid.dp)
        counts = [[packs[k].tiles for k in chosen] for chosen in replicas]
        ordered = [packs[k] for chosen in replicas for k in chosen]
        sizes = self._sizes(image for pack in ordered for entry in pack.entries for image in entry.images)
        shares = shares_of(self._model, seat.grid, counts, sizes)
        share = shares.decodes(seat.member, seat.tp, seat.tp_rank)
        tiles = self._tiles(ordered, share, stand_ins)
        dp, pp, cp = seat.grid.place(seat.member)
        mine, tells = [packs[k] for k in replicas[dp]], pp == cp == seat.tp_rank == 0
        made = [self._text(pack, stand_ins, tells) for pack in mine]
        missing = max(1, -(-len(mine) // micro_batches_of)) * micro_batches_of - len(mine)
        rows = [*(pack.row for pack in mine), *[None] * missing]
        filled = [*made, *(self._assembled([]) for _ in range(missing))]
        self._found[number] = stand_ins.found
        told = amounts(packs, self._manifest.sequence_length, self._beside)
        return StepBatch(filled, rows, self._own(tiles, sizes, share), shares, stand_ins.problems, told, sizes)

    def settled(self, batch: StepBatch, agree: Agree, seat: Seat = Seat(), micro_batches_of: int = 1) -> StepBatch:  # noqa: B008 - frozen
        """The batch with a substitute in the place of every sample that any process found unreadable, on all alike.

        All processes call it, with what `batch` was made for. A substitute that is unreadable too leaves a place from
        which nothing is learnt. Without problems this costs one `agree`.
        """
        assert batch.amounts is not None
        number, known = batch.amounts.batch, set[Bad]()
        while (told := agree(batch.problems)) != known:
            known = told
            found = self._found.pop(number, {})
            self._tell(found)
            self._bad |= told
            if found or told != set(batch.problems):
                batch = self.batch(number, seat, micro_batches_of)
        self._found.pop(number, None)
        return batch

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

    def _text(self, pack: Pack, stand_ins: StandIns, tells: bool) -> PackedBatch:
        """A packed sequence without its tiles."""
        return self._assembled([self._sample(where, entry, stand_ins, tells) for where, entry in places_of([pack])])

    def _assembled(self, samples: Sequence[Prepared]) -> PackedBatch:
        length, has_context = self._manifest.sequence_length, self._chat.has_context
        arrays = assemble(samples, length, self._model.tiling.side, self._padding, has_context)
        return to_torch(normalised(arrays, self._normalisation))

    def _sample(self, where: Place, entry: Entry, stand_ins: StandIns, tells: bool) -> Prepared:
        """A sample, or what stands for it, in a place of as many tokens as it has."""
        source = stand_ins.of(entry)
        if source is not None:
            try:
                return self._encoded(source, entry)
            except InputError as error:
                stand_ins.fails(source, error, where, tells)
        sizes = self._sizes(entry.images) or ()
        return Prepared(self._chat.blank(entry.images, entry.tokens), (), weight=0.0, sizes=sizes)

    def _encoded(self, source: Entry, place: Entry) -> Prepared:
        """The tokens of `source`; raises InputError (with a `reason`) when it is not as packed."""
        reader = self._sets[source.set]
        sample = reader.read(source.index, only=TEXT_FIELDS)
        messages = read_messages(sample, len(image_fields(reader.fields(source.index))))
        encoded = self._chat.encode(messages, source.images)
        count = len(encoded.tokens)
        if count > place.tokens or (source is place and count < place.tokens):
            raise BadSample("changed", f"{count} tokens, and {place.tokens} were packed")
        sizes = self._sizes(source.images) or ()
        return Prepared(encoded.padded(place.tokens, self._padding), (), place.weight, sizes)

    def _sizes(self, images: Iterable[ImageTiles]) -> Sizes | None:
        """Height and width of each tile of some images, None where all tiles are alike."""
        tiling = self._model.tiling
        if tiling.step is None:
            return None
        return tuple(tiling.size(image) for image in images for _ in range(image.tiles))

    @staticmethod
    def _own(tiles: np.ndarray, sizes: Sizes | None, share: range) -> Tiles:
        return as_tiles(tiles, None if sizes is None else sizes[share.start : share.stop])

    def _tiles(self, packs: Sequence[Pack], wanted: range, stand_ins: StandIns) -> np.ndarray:
        """Tiles `wanted` of those of all packs, uint8 [n, 3, side, side], or flat."""

        def failed(picture: Picture, entry: Entry, error: InputError) -> None:
            tells = picture.tiles.start in wanted  # another process may decode others of its tiles
            stand_ins.fails(entry, error, picture.where, tells)

        return self._images.tiles(pictures(packs, stand_ins.of), wanted, failed)

    def _tell(self, found: Mapping[Bad, Found]) -> None:
        """Report what no process knew of before."""
        for bad, (entry, error, row, tells) in found.items():
            if tells and bad not in self._bad:
                told = {"set": entry.set, "key": self._key(entry), "reason": getattr(error, "reason", "unreadable")}
                other = substitute(entry)
                instead = None if other is None else self._key(other)
                self._report("bad_sample", **told, detail=error.what, row=row, instead=instead)

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
    chat, decoder = spec.data.template, spec.data.decoder
    if (rank := os.environ.get("LOCAL_RANK")) is not None:
        decoder = decoder.on_gpu(int(rank))
    return PackLoader(manifest, sets, spec.model, spec.tokenizer(), chat, report, how, skips, decoder)


def cost(pack: Pack) -> float:
    """What tells packs of one length apart: attention sees the square of each sample's length."""
    return float(sum(entry.tokens**2 for entry in pack.entries))


def shares_of(model: ModelConfig, grid: Grid, counts: Sequence[Sequence[int]], sizes: Sizes | None) -> Shares:
    """Who looks at which of the tiles: `counts` of them in each pack of each replica, of these `sizes`."""
    wanted_by: Literal["first", "all"] = "all" if model.injection.has_context else "first"
    work = None if sizes is None else [model.tokens_of(size) for size in sizes]
    return Shares(grid, counts, wanted_by, work)
