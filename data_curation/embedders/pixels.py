"""The baseline that every model has to beat: a picture's own pixels at thumbnail size. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import PositiveInt

from megavlm.platform.config import Config


class Pixels(Config):
    """RGB values of the image squashed to side x side: features [3 * side^2] in 0..1."""

    name: str = "pixels"
    side: PositiveInt = 8
    batch_size: PositiveInt = 256

    def build(self, seed: int) -> tuple[Callable[[list[np.ndarray]], np.ndarray], dict[str, Any]]:
        """The function images uint8 [H, W, 3] -> float32 [n, d], and notes for the ledger; `seed` changes nothing."""
        from PIL import Image

        def embed(images: list[np.ndarray]) -> np.ndarray:
            size = (self.side, self.side)
            small = [Image.fromarray(image).resize(size, Image.Resampling.BOX) for image in images]
            return np.stack([np.asarray(image, dtype=np.float32).ravel() / 255.0 for image in small])

        return embed, {
            "model": "pixels",
            "weights": "none",
            "pretrained": False,
            "image_size": self.side,
            "parameters": 0,
        }
