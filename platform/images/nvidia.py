"""Whole batches by NVIDIA's libraries: nvImageCodec decodes, DALI resizes; on a GPU, or on the CPU to try them out.

DALI alone would stop at the first corrupt JPEG, for its pipelines fail as a whole; nvImageCodec leaves that sample out.
Run on the CPU with nvidia-nvimgcodec-cu13 0.9.0 and nvidia-dali-cuda130 2.4.0; never run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from ..errors import ConfigError, MissingPackage
from .dali import DaliResizer
from .decode import MAX_PIXELS, BadImage, cut_short, is_plain_jpeg, open_image
from .decoders import Decoded, ImageDecoder
from .dynamic import Dynamic
from .exact import ExactDecoder
from .one_tile import OneTile
from .rules import Tiling
from .tiling import cut_grid, tile_count

GET = "pip install -e '.[gpu]'"


class NvidiaDecoder(ImageDecoder):
    """Plain JPEGs in batches; every other file, and every one that nvImageCodec refuses, as `exact` does it.

    A JPEG whose data end early before a forged end marker is padded with gray, as Pillow alone would: only `exact` and
    `fast` notice it. Raises MissingPackage, and ConfigError when there is no GPU for `device: gpu`.
    """

    batched: ClassVar[bool] = True

    name: Literal["nvidia"] = "nvidia"
    device: Literal["gpu", "cpu"] = "gpu"
    gpu: NonNegativeInt = 0  # which one
    threads: PositiveInt = 1  # of the CPU; they also unpack the GPU's JPEGs
    batch_size: PositiveInt = 32  # images that are held at once

    def check(self) -> None:
        """As ImageDecoder.check."""
        if find_spec("nvidia") is None or find_spec("nvidia.nvimgcodec") is None:
            raise MissingPackage("package 'nvidia-nvimgcodec-cu13' is needed here", fix=GET)

    def on_gpu(self, number: int) -> NvidiaDecoder:
        """As ImageDecoder.on_gpu."""
        return self.model_copy(update={"gpu": number})

    def images(self, items: Sequence[bytes], max_pixels: int = MAX_PIXELS, min_side: int = 0) -> list[Decoded]:
        """As ImageDecoder.images; `min_side` changes nothing."""
        ready = self._ready(items, max_pixels, lambda pictures: [_on_host(picture) for picture in pictures])
        return _complete(ready, items, lambda rest: ExactDecoder().images(rest, max_pixels))

    def tiles(self, items: Sequence[bytes], rule: Tiling, max_pixels: int = MAX_PIXELS) -> list[Decoded]:
        """As ImageDecoder.tiles; every file as `exact` does it where the rule does not stretch the image."""
        if isinstance(rule, Dynamic):
            finish: Callable[[list[Any]], list[np.ndarray]] = partial(self._cut, rule=rule)
        elif isinstance(rule, OneTile):
            finish = partial(self._stretch, rule=rule)
        else:
            return ExactDecoder().tiles(items, rule, max_pixels)
        ready = self._ready(items, max_pixels, finish)
        return _complete(ready, items, lambda rest: ExactDecoder().tiles(rest, rule, max_pixels))

    def _ready(
        self, items: Sequence[bytes], max_pixels: int, finish: Callable[[list[Any]], list[np.ndarray]]
    ) -> dict[int, np.ndarray]:
        """Place -> what `finish` makes of nvImageCodec's images, for the files that it can decode."""
        places = [place for place, data in enumerate(items) if _is_whole_jpeg(data, max_pixels)]
        ready: dict[int, np.ndarray] = {}
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            pictures = zip(batch, self._decode([items[place] for place in batch]), strict=True)
            found = {place: picture for place, picture in pictures if picture is not None}
            ready |= zip(found, finish(list(found.values())), strict=True)
        return ready

    def _decode(self, items: list[bytes]) -> list[Any]:
        """nvImageCodec's images in RGB, as displayed; None where it gave up."""
        library, decoder = self._codec
        parameters = library.DecodeParams(apply_exif_orientation=True, sample_format=library.SampleFormat.I_RGB)
        return list(decoder.decode([library.CodeStream(data) for data in items], params=parameters))

    def _stretch(self, pictures: list[Any], rule: OneTile) -> list[np.ndarray]:
        sizes = [rule.size(rule.plan(picture.width, picture.height)) for picture in pictures]
        return [tile[None] for tile in self._resize(pictures, sizes)]

    def _cut(self, pictures: list[Any], rule: Dynamic) -> list[np.ndarray]:
        grids = [rule.grid(picture.width, picture.height) for picture in pictures]
        sizes = [(rows * rule.tile, cols * rule.tile) for cols, rows in grids]
        tiles = [cut_grid(grid, rule.tile, None) for grid in self._resize(pictures, sizes)]
        more = [k for k, grid in enumerate(grids) if tile_count(*grid, rule.thumbnail) > grid[0] * grid[1]]
        small = self._resize([pictures[k] for k in more], [(rule.tile, rule.tile)] * len(more))
        for k, thumbnail in zip(more, small, strict=True):
            tiles[k] = np.concatenate([tiles[k], thumbnail[None]])
        return tiles

    @cached_property
    def _codec(self) -> tuple[Any, Any]:
        """The library and its decoder."""
        self.check()
        from nvidia import nvimgcodec

        # Smooth chroma, as libjpeg-turbo has it by default.
        options: dict[str, Any] = {"max_num_cpu_threads": self.threads, "options": ":fancy_upsampling=1"}
        if self.device == "cpu":
            backends = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
            options |= {"device_id": nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, "backends": backends}
        else:
            options["device_id"] = self.gpu
        try:
            return nvimgcodec, nvimgcodec.Decoder(**options)
        except RuntimeError as error:
            fix = "decoder.device=cpu, or `megavlm doctor` for the driver"
            raise ConfigError(f"nvImageCodec cannot use GPU {self.gpu}: {error}", fix=fix) from error

    @cached_property
    def _resize(self) -> DaliResizer:
        return DaliResizer(self.batch_size, self.threads, None if self.device == "cpu" else self.gpu)


def _is_whole_jpeg(data: bytes, max_pixels: int) -> bool:
    """Whether a file is nvImageCodec's business, judged by its header and its end marker."""
    try:
        return is_plain_jpeg(open_image(data, max_pixels)) and not cut_short(data)
    except BadImage:
        return False


def _complete(
    ready: dict[int, np.ndarray], items: Sequence[bytes], judge: Callable[[list[bytes]], list[Decoded]]
) -> list[Decoded]:
    """Everything in its place: `judge` decodes what is not ready, or says why it cannot be."""
    missing = [place for place in range(len(items)) if place not in ready]
    found = ready | dict(zip(missing, judge([items[place] for place in missing]), strict=True))
    return [found[place] for place in range(len(items))]


def _on_host(picture: Any) -> np.ndarray:
    """A copy, for the library frees its own."""
    return np.array(picture.cpu())
