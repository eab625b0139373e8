"""The tiles of a global batch's images: read, decoded and cut in threads, and held for the next pass of a small set."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from megavlm.platform.errors import InputError
from megavlm.platform.images import Decoded, ImageDecoder, ImageTiles, Tiling
from megavlm.platform.shards import ShardReader

from .assemble import grey, side_by_side_tiles
from .manifest import Entry, Pack
from .measure import tiles_of
from .samples import BadSample, image_fields
from .shares import common
from .stand_ins import Place, places_of

CACHE_BYTES = 512 * 1024**2

StandIn = Callable[[Entry], Entry | None]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image of a global batch, and which of its tiles are this image's."""

    where: Place  # of its sample
    entry: Entry | None  # the sample that it is taken from; None where grey stands for it
    number: int  # of the image in its sample
    cut: ImageTiles
    tiles: range


def pictures(packs: Sequence[Pack], stands: StandIn) -> Iterator[Picture]:
    """The images of packs in their order, those of the samples that stand for unreadable ones among them."""
    start = 0
    for where, entry in places_of(packs):
        source = stands(entry) if entry.images else None
        for number, cut in enumerate(entry.images):
            yield Picture(where, source, number, cut, range(start, start + cut.tiles))
            start += cut.tiles


class TileLoader:
    """Reads and decodes images of sets, in as many threads as this process has cores."""

    def __init__(self, sets: Mapping[str, ShardReader], tiling: Tiling, decoder: ImageDecoder) -> None:
        self._sets, self._tiling, self._decoder = sets, tiling, decoder
        self._cache = _Cache(CACHE_BYTES)
        self._threads = ThreadPoolExecutor(decode_threads(), thread_name_prefix="decode")
        self._alone = threading.Lock()  # a decoder of batches takes one at a time

    def tiles(
        self, images: Iterator[Picture], wanted: range, failed: Callable[[Picture, Entry, InputError], None]
    ) -> np.ndarray:
        """The tiles `wanted` of those of all images, uint8 [n, 3, side, side], or flat where they differ in size.

        Grey ones where an image does not decode, which `failed` is told.
        """
        chosen = [picture for picture in images if len(common(picture.tiles, wanted))]
        parts = []
        for picture, found in zip(chosen, self._all(chosen), strict=True):
            if isinstance(found, InputError) and picture.entry is not None:
                failed(picture, picture.entry, found)
            size = self._tiling.size(picture.cut)
            shown = found if isinstance(found, np.ndarray) else grey(len(picture.tiles), size)
            run = common(picture.tiles, wanted)
            parts.append(shown[run.start - picture.tiles.start : run.stop - picture.tiles.start])
        return side_by_side_tiles(parts, self._tiling.side)

    def _all(self, chosen: Sequence[Picture]) -> list[np.ndarray | bytes | InputError | None]:
        """uint8 [n, 3, height, width] of each image, or why there is none; None where none is looked for."""
        found = list(self._threads.map(self._held_or_read, chosen))
        left = {k: each for k, each in enumerate(found) if isinstance(each, bytes)}
        for k, made in zip(left, self._decoded(list(left.values())), strict=True):
            found[k] = self._kept(chosen[k], made)
        return found

    def _held_or_read(self, picture: Picture) -> np.ndarray | bytes | InputError | None:
        if picture.entry is None:
            return None
        found = self._cache.get(_key(picture))
        try:
            return self._read(picture, picture.entry) if found is None else found
        except InputError as error:
            return error

    def _read(self, picture: Picture, entry: Entry) -> bytes:
        """An image's file; raises InputError when there is none such, or it is not cut as it was packed."""
        reader = self._sets[entry.set]
        name = image_fields(reader.fields(entry.index))[picture.number]
        data = reader.read(entry.index, only={name}).fields[name]
        if (cut := tiles_of(data, self._tiling)) != picture.cut:
            raise BadSample("changed", f"image {name} is cut into {tuple(cut)}, and {tuple(picture.cut)} were packed")
        return data

    def _decoded(self, items: list[bytes]) -> list[Decoded]:
        if self._decoder.batched:
            with self._alone:
                return self._decoder.tiles(items, self._tiling)
        return [found for [found] in self._threads.map(lambda data: self._decoder.tiles([data], self._tiling), items)]

    def _kept(self, picture: Picture, made: Decoded) -> np.ndarray | InputError:
        if isinstance(made, InputError):
            return made
        found = np.ascontiguousarray(made.transpose(0, 3, 1, 2))
        self._cache.put(_key(picture), found)
        return found


def decode_threads() -> int:
    """This process' share of the machine's cores."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _key(picture: Picture) -> Hashable:
    entry = picture.entry
    return entry and (entry.set, entry.index, picture.number)


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
