"""Decoders by name, and the calls that everybody uses: bytes to RGB arrays or to tiles, one at a time or many.

`exact` gives the pixels that published checkpoints were trained on, so it is the default everywhere; `fast` stays
within a measured distance of it (benchmarks/decode.md); `nvidia` takes whole batches to a GPU.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, ParamSpec, cast

import numpy as np

from ..config import Config
from ..registry import Registry
from .decode import MAX_PIXELS, BadImage
from .rules import Tiling

IMAGE_DECODERS = Registry(
    "image decoder",
    {
        "exact": "megavlm.platform.images.exact:ExactDecoder",
        "fast": "megavlm.platform.images.fast:FastDecoder",
        "nvidia": "megavlm.platform.images.nvidia:NvidiaDecoder",
    },
)

P = ParamSpec("P")
Decoded = np.ndarray | BadImage  # what became of one file: pixels, or why there are none


class ImageDecoder(Config):
    """Files to pixels. A file that cannot be used becomes a BadImage in its place and costs no other one.

    An instance holds what it opened (a GPU's decoder), so keep it for the next batch. `max_pixels` is compared with the
    header before any pixel is decoded.
    """

    batched: ClassVar[bool] = False  # many files at once, from one thread at a time; the others want many threads

    name: str

    def check(self) -> None:
        """Raise MissingPackage where what it needs is not installed. Asks for no GPU."""

    def on_gpu(self, number: int) -> ImageDecoder:
        """The same for another GPU; itself where it uses none."""
        return self

    @abstractmethod
    def images(self, items: Sequence[bytes], max_pixels: int = MAX_PIXELS, min_side: int = 0) -> list[Decoded]:
        """uint8 RGB [H, W, 3] as displayed (as `decode` documents it).

        With a `min_side` a decoder may return an image divided by 2, 4 or 8 whose shorter side still has that many
        pixels.
        """

    @abstractmethod
    def tiles(self, items: Sequence[bytes], rule: Tiling, max_pixels: int = MAX_PIXELS) -> list[Decoded]:
        """uint8 RGB [n, tile, tile, 3], cut by `rule`."""


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = 0, decoder: str | ImageDecoder = "exact"
) -> np.ndarray:
    """Decode to uint8 RGB [H, W, 3], EXIF rotation applied; raises BadImage.

    Transparency is composited on white; 16-bit samples v become round(v / 257); CMYK is converted without a profile;
    an animation gives its first frame. See ImageDecoder.images for `max_pixels` and `min_side`.
    """
    return _only(load_decoder(decoder).images([data], max_pixels, min_side))


def decode_tiles(
    data: bytes, rule: Tiling, *, max_pixels: int = MAX_PIXELS, decoder: str | ImageDecoder = "exact"
) -> np.ndarray:
    """Decode and cut in one pass: uint8 RGB [n, tile, tile, 3]; raises BadImage, and ConfigError for bad bounds.

    `exact` equals rule.cut(decode(data)) bit by bit.
    """
    return _only(load_decoder(decoder).tiles([data], rule, max_pixels))


def load_decoder(decoder: str | ImageDecoder) -> ImageDecoder:
    """The decoder of that name with its default options; one that is made already is returned as it is."""
    if isinstance(decoder, ImageDecoder):
        return decoder
    return cast(ImageDecoder, IMAGE_DECODERS.load(decoder).parse({"name": decoder}))


def attempt(work: Callable[P, np.ndarray], *args: P.args, **kwargs: P.kwargs) -> Decoded:
    """What `work` returns, or the BadImage that it raised."""
    try:
        return work(*args, **kwargs)
    except BadImage as error:
        return error


def _only(found: list[Decoded]) -> np.ndarray:
    (result,) = found
    if isinstance(result, BadImage):
        raise result
    return result
