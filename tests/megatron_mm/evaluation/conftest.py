"""A small held-out set and the configuration of a small model."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megavlm.platform.shards import ShardReader, ShardWriter


def jpeg(number: int, width: int = 60, height: int = 60) -> bytes:
    values = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(values).save(target, "JPEG")
    return target.getvalue()


def question(key: str, text: str, answer: str, kind: str = "count", image: bytes | None = None) -> tuple[str, dict]:
    asked = f"<image>{text}" if image else text
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    fields: dict[str, Any] = {"json": {"id": key, "messages": messages, "answer": answer, "kind": kind}}
    return key, fields | ({"jpg": image} if image else {})


@pytest.fixture(scope="session")
def ask() -> Callable[..., tuple[str, dict]]:
    """`ask(key, text, answer, kind, image) -> (key, fields)`: one item as a shard holds it."""
    return question


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """`picture(number, width, height) -> JPEG bytes` of noise."""
    return jpeg


@pytest.fixture
def held_out(tmp_path: Path) -> Callable[..., ShardReader]:
    """`held_out([(key, fields), ...]) -> ShardReader`."""

    def make(samples: list[tuple[str, dict]]) -> ShardReader:
        with ShardWriter(tmp_path / "set") as writer:
            for key, fields in samples:
                writer.write(key, fields)
        return ShardReader(tmp_path / "set")

    return make
