"""A small recipe over hand-made sets: two texts, two pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megavlm.platform.shards import ShardWriter

STAGES = """\
  only:
    train: [connector]
    mixture: {weights: {text: 1, vqa: 1}, sequence_length: 96, packs_per_batch: 4}
    steps: 6
    precision: fp32
    optimizer: {lr: 1e-3}
"""


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def picture(width: int, height: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "jpeg", quality=95)
    return out.getvalue()


@pytest.fixture
def make_recipe(tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., Path]:
    """`make_recipe(text=..., vqa=...)` writes the two sets (key -> fields) and a recipe over them; returns its path."""

    def make(
        text: Mapping[str, Mapping[str, Any]] | None = None, vqa: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Path:
        texts = {f"t{k}": {"json": talk(f"How many? {k} {k}", str(k))} for k in range(9)}
        pictures = {
            f"p{k}": {"jpg": picture(*size, seed=k), "json": talk("<image>What colour?", "red")}
            for k, size in enumerate([(28, 28), (90, 40), (40, 90)])
        }
        for name, samples in (("text", text or texts), ("vqa", vqa or pictures)):
            with ShardWriter(tmp_path / name) as writer:
                for key, fields in samples.items():
                    writer.write(key, fields)
        return write_recipe(tmp_path, STAGES, max_tiles=4, seed=3)

    return make
