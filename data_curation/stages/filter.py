"""Filter: decode every image once, apply the rules, and take both hashes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny, field_validator

from megavlm.platform.images import BadImage, decode, probe

from ..filters.base import Facts, parse_filters
from ..filters.base import Filter as Rule
from ..filters.captions import CaptionLength
from ..filters.pictures import Aspect, Contrast, Sides
from ..hashing import exact_hash, perceptual_hash
from ..source import image_bytes, read_samples
from .base import Outcome, ShardStage, Worker
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
    """Rules on the decoded image, its caption and its metadata; the first that a sample breaks names the reason.

    Sides are in pixels, after EXIF rotation.
    """

    needs: ClassVar[tuple[str, ...]] = ("ingest",)
    from_sidecars: ClassVar[bool] = True
    measures_by: ClassVar[tuple[str, ...]] = ("max_pixels",)

    min_side: PositiveInt = 200  # DataComp's basic filter
    max_aspect: PositiveFloat = 3.0  # longer side / shorter side, DataComp's basic filter
    min_contrast: float = 4.0  # standard deviation of gray below which an image shows nothing
    min_caption_words: NonNegativeInt = 1
    min_caption_characters: NonNegativeInt = 1
    max_pixels: PositiveInt = 178_956_970  # decompression bombs are judged from the header, before decoding
    extra: list[SerializeAsAny[Rule]] = []  # further rules, {use: NAME, ...}: docs/curation.md, "A filter of your own"

    @field_validator("extra", mode="before")
    @classmethod
    def _extra(cls, value: object) -> list[Rule]:
        return parse_filters(value, where="extra")

    def rules(self) -> list[Rule]:
        """All rules in the order in which they are asked."""
        words, characters = self.min_caption_words, self.min_caption_characters
        return [
            Sides(use="sides", min=self.min_side),
            Aspect(use="aspect", max=self.max_aspect),
            Contrast(use="contrast", min=self.min_contrast),
            CaptionLength(use="caption_length", min_words=words, min_characters=characters),
            *self.extra,
        ]

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """One pass over the shard's tar, one decoded image in memory at a time."""
        shards, rules = {shard.name: shard for shard in run.shards}, self.rules()

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            received = run.gather(self.name, name, {"ingest": ["caption", "metadata"]}).to_pylist()
            told = {row["key"]: row for row in received}
            rows = [self._row(told[one.key], image_bytes(one), rules) for one in read_samples(shards[name], told)]
            return pa.Table.from_pylist(rows, schema=SCHEMA), {}

        return judge

    def _row(self, told: Row, data: bytes, rules: Sequence[Rule]) -> Row:
        row: Row = {"key": told["key"], "bytes": len(data)}
        try:
            image = decode(data, max_pixels=self.max_pixels)
        except BadImage as error:
            return row | {"keep": False, "reason": error.reason, "detail": error.what}
        row |= {"format": probe(data, max_pixels=self.max_pixels).format, **_measure(image)}
        judged = row | _judgement(rules, row, told)
        if judged["keep"]:
            hashes = dict(zip(("pdq", "pdq_quality"), perceptual_hash(image), strict=True))
            judged |= {"sha256": exact_hash(data)} | hashes
        return judged

    def again(self, run: CurationRun, before: CurationRun) -> Worker:
        """The rules on what was measured; nothing is decoded. Images that were dropped have no hashes."""
        rules = self.rules()

        def work(task: int) -> Outcome:
            shard = run.plan.names[task]
            received = run.gather(self.name, shard, {"ingest": ["caption", "metadata"]}).to_pylist()
            told = {row["key"]: row for row in received}
            stored = [row for row in before.sidecar(self.name, shard).to_pylist() if row["key"] in told]
            measured = [row | _judgement(rules, row, told[row["key"]]) if row["width"] else row for row in stored]
            table = pa.Table.from_pylist(measured, schema=SCHEMA)
            run.write_sidecar(self.name, shard, table)
            return Outcome.of(table)

        return work


def _judgement(rules: Sequence[Rule], row: Row, told: Row) -> Row:
    """keep, reason and detail of an image that could be decoded."""
    measured = {name: row[name] for name in ("key", "width", "height", "contrast", "format", "bytes")}
    facts = Facts(**measured, caption=told["caption"], metadata=json.loads(told["metadata"]))
    reason, detail = verdict(rules, facts)
    return {"keep": reason is None, "reason": reason, "detail": detail}


def verdict(rules: Sequence[Rule], facts: Facts) -> tuple[str | None, str | None]:
    """The first rule that a sample breaks as (reason, detail), or (None, None)."""
    found = ((rule.reason, rule.breaks(facts)) for rule in rules)
    return next(((reason, detail) for reason, detail in found if detail is not None), (None, None))


def _measure(image: np.ndarray) -> Row:
    height, width = image.shape[:2]
    # Rec. 601 luma; a strided view bounds the cost on very large images
    step = max(1, min(height, width) // 256)
    gray = image[::step, ::step].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return {"width": width, "height": height, "contrast": float(gray.std())}
