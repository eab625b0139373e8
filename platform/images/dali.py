"""Resizing batches of decoded images with NVIDIA DALI, whose antialiased cubic filter is close to Pillow's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import MissingPackage


class DaliResizer:
    """Images of any sizes -> arrays of any sizes, at most `batch` at a time; `gpu` None keeps all of it on the CPU.

    Raises MissingPackage without DALI.
    """

    def __init__(self, batch: int, threads: int, gpu: int | None) -> None:
        try:
            from nvidia.dali import fn, types
            from nvidia.dali.pipeline import Pipeline
        except ImportError as error:
            raise MissingPackage(
                "package 'nvidia-dali-cuda130' is needed here", fix="pip install -e '.[gpu]'"
            ) from error
        self._on_gpu = gpu is not None
        # One batch goes in, one comes out: prefetching would only delay it.
        self._pipeline = Pipeline(batch, threads, gpu, prefetch_queue_depth=1)
        with self._pipeline:
            images = fn.external_source(name="images", layout="HWC", device="gpu" if self._on_gpu else "cpu")
            sizes = fn.external_source(name="sizes")
            resized = fn.resize(images, size=sizes, interp_type=types.INTERP_CUBIC, antialias=True)
            self._pipeline.set_outputs(resized)
        self._pipeline.build()

    def __call__(self, images: list[Any], sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """nvImageCodec's images, to be stretched to (height, width) each -> uint8 [height, width, 3]."""
        if not images:
            return []
        held = images if self._on_gpu else [np.asarray(image.cpu()) for image in images]
        self._pipeline.feed_input("images", held, layout="HWC")
        self._pipeline.feed_input("sizes", [np.array(size, dtype=np.float32) for size in sizes])
        (found,) = self._pipeline.run()
        found = found.as_cpu() if self._on_gpu else found
        return [np.array(found.at(place)) for place in range(len(images))]  # copies: the next run writes over them
