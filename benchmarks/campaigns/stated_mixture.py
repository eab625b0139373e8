"""A mixture whose sizes are stated, for campaigns and tests: no shard, no text, only what measuring would have found.

Half of the samples have one image, a fifth 2 to 6, the rest none. Width and height of an image are lognormal (median
800, sigma 0.5) and make tiles by the rule (448 pixels, 6 tiles and a thumbnail), of 256 tokens and 5 of a tag each;
text beside images has a median of 150 tokens (sigma 0.8), text alone 450 (sigma 0.9).
"""

from __future__ import annotations

import numpy as np

from megavlm.megatron_mm.data.items import Ragged
from megavlm.platform.images import image_tiles

WEIGHTS = {"one": 0.5, "several": 0.2, "text": 0.3}
PER_TILE = 256 + 5


class StatedMixture:
    """Draws sizes; `images` different ones are worked out and drawn from."""

    def __init__(self, seed: int, images: int = 20_000) -> None:
        self._rng = np.random.default_rng(seed)
        width, height = (np.maximum(1, self._lognormal(images, 800, 0.5)) for _ in range(2))
        cut = (image_tiles(int(w), int(h), 448, 1, 6, True) for w, h in zip(width, height, strict=True))
        self._images = np.array(list(cut), np.int16)

    def _lognormal(self, count: int, median: float, sigma: float) -> np.ndarray:
        return (median * np.exp(sigma * self._rng.standard_normal(count))).astype(np.int64)

    def draw(self, name: str, count: int) -> tuple[np.ndarray, np.ndarray, Ragged]:
        """Tokens and learnt tokens int32 [count], and how each image is cut, of samples of one set."""
        images = {"one": np.ones(count, np.int64), "text": np.zeros(count, np.int64)}.get(name)
        if images is None:
            images = self._rng.integers(2, 7, count)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(images)])
        tiles = Ragged(self._images[self._rng.integers(0, len(self._images), int(ends[-1]))], ends)
        text = 1 + (self._lognormal(count, 450, 0.9) if name == "text" else self._lognormal(count, 150, 0.8))
        return (tiles.tiles() * PER_TILE + text).astype(np.int32), (text // 2).astype(np.int32), tiles
