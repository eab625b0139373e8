"""Filter: decode every image once, apply the rules, and take both hashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from megavlm.platform.images import BadImage, decode, probe

from ..hashing import exact_hash, perceptual_hash
from ..source import image_bytes, read_samples
from .base import ShardStage
from .sidecar import judging_schema

if TYPE_CHECKING:
    from ..run import CurationRun

SCHEMA = judging_schema(
    width=pa.int32(),
    height=pa.int32(),
    format=pa.string(),
    bytes=pa.int64(),
    contrast=pa.float32(),  # standard deviation of the gray values, 0..128
    sha256=pa.string(),
    pdq=pa.binary(32),
    pdq_quality=pa.int16(),
)
Row = dict[str, Any]


class Filter(ShardStage):
    """Rules on the decoded image and its caption. Sides are in pixels, after EXIF rotation."""

    needs: ClassVar[tuple[str, ...]] = ("ingest",)

    min_side: PositiveInt = 200  # DataComp's basic filter
    max_aspect: PositiveFloat = 3.0  # longer side / shorter side, DataComp's basic filter
    min_contrast: float = 4.0  # standard deviation of gray below which an image shows nothing
    min_caption_words: NonNegativeInt = 1
    min_caption_characters: NonNegativeInt = 1
    max_pixels: PositiveInt = 178_956_970  # decompression bombs are judged from the header, before decoding

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """One pass over the shard's tar, one decoded image in memory at a time."""
        shards = {shard.name: shard for shard in run.shards}

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            received = run.gather(self.name, name, {"ingest": ["caption"]}).to_pylist()
            captions = {row["key"]: row["caption"] for row in received}
            samples = read_samples(shards[name], captions)
            rows = [self._row(sample.key, image_bytes(sample), captions[sample.key]) for sample in samples]
            return pa.Table.from_pylist(rows, schema=SCHEMA), {}

        return judge

    def _row(self, key: str, data: bytes, caption: str) -> Row:
        try:
            image = decode(data, max_pixels=self.max_pixels)
        except BadImage as error:
            return {"key": key, "keep": False, "reason": error.reason, "detail": error.what, "bytes": len(data)}
        row = {
            "key": key,
            "bytes": len(data),
            "format": probe(data, max_pixels=self.max_pixels).format,
            **_measure(image),
        }
        reason, detail = self.verdict(row, caption)
        if reason is None:
            row |= {"sha256": exact_hash(data)} | dict(zip(("pdq", "pdq_quality"), perceptual_hash(image), strict=True))
        return row | {"keep": reason is None, "reason": reason, "detail": detail}

    def verdict(self, row: Row, caption: str) -> tuple[str | None, str | None]:
        """The first rule that a sample breaks as (reason, detail), or (None, None)."""
        short, long = sorted((row["width"], row["height"]))
        words = len(caption.split())
        rules = (
            ("too_small", short < self.min_side, f"{row['width']} x {row['height']}, shortest side {self.min_side}"),
            ("aspect_ratio", long > self.max_aspect * short, f"{long / short:.2f} : 1, at most {self.max_aspect:g}"),
            ("flat_image", row["contrast"] < self.min_contrast, f"gray deviation {row['contrast']:.1f}"),
            ("short_caption", words < self.min_caption_words, f"{words} words"),
            ("short_caption", len(caption) < self.min_caption_characters, f"{len(caption)} characters"),
        )
        return next(((reason, detail) for reason, broken, detail in rules if broken), (None, None))


def _measure(image: np.ndarray) -> Row:
    height, width = image.shape[:2]
    # Rec. 601 luma; a strided view bounds the cost on very large images
    step = max(1, min(height, width) // 256)
    gray = image[::step, ::step].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return {"width": width, "height": height, "contrast": float(gray.std())}
