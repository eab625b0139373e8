"""The baseline that every model has to beat: a picture's own pixels at thumbnail size. Needs no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import PositiveInt

from megavlm.platform.config import Config

from .base import Embedding


class Pixels(Config):
    """RGB values of the image squashed to side x side: features [3 * side^2] in 0..1."""

    name: str = "pixels"
    side: PositiveInt = 8
    batch_size: PositiveInt = 256

    def build(self, seed: int) -> tuple[Embedding, dict[str, Any]]:
        """The embedding, and notes for the ledger; `seed` changes nothing."""
        from PIL import Image

        def prepare(image: np.ndarray) -> np.ndarray:
            small = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BOX)
            return np.asarray(small, dtype=np.float32).ravel()

        return Embedding(prepare, lambda pixels: pixels / np.float32(255.0)), {
            "model": "pixels",
            "weights": "none",
            "pretrained": False,
            "image_size": self.side,
            "parameters": 0,
        }
