"""Evaluation sets' images as hashes: taken once, then asked for the nearest."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.errors import InputError
from megavlm.platform.images import BadImage, decode
from megavlm.platform.shards import Sample
from megavlm.platform.storage import write_atomic

from .hashing import BITS, exact_hash, perceptual_hash
from .source import RUN_MARK, image_field
from .sources.base import Source

SCHEMA = pa.schema({"item": pa.string(), "sha256": pa.string(), "pdq": pa.binary(32), "pdq_quality": pa.int16()})


def hash_set(source: Source, members: Path, max_pixels: int) -> tuple[pa.Table, dict[str, int]]:
    """Hashes of a set's images (SCHEMA; `pdq` is null where an image cannot be decoded), and what was refused why.

    `members` is where a source may keep its lists. Raises InputError when the set holds no image at all.
    """
    rows: list[dict[str, Any]] = []
    refused: Counter[str] = Counter()
    for shard in source.find(members):
        name = shard.url.rsplit("/", 1)[-1]
        here = dataclasses.replace(shard, url=str(members / name)) if shard.url.startswith(RUN_MARK) else shard
        for item in source.read(here):
            field = image_field(item.fields) if isinstance(item, Sample) else None
            if isinstance(item, Sample) and field is not None:
                rows.append(_hashed(f"{shard.name}/{item.key}", item.fields[field], max_pixels, refused))
            else:
                refused[getattr(item, "reason", "missing_image")] += 1
    if not rows:
        raise InputError(f"no image in '{source.place}'", where="curation.stages.decontaminate.against")
    return pa.Table.from_pylist(rows, schema=SCHEMA), dict(sorted(refused.items()))


def _hashed(item: str, data: bytes, max_pixels: int, refused: Counter[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"item": item, "sha256": exact_hash(data)}
    try:
        pdq, quality = perceptual_hash(decode(data, max_pixels=max_pixels))
    except BadImage as error:
        refused[error.reason] += 1
        return row
    return row | {"pdq": pdq, "pdq_quality": quality}


def write_known(path: Path, table: pa.Table) -> None:
    """A set's hashes, whole."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomic(path, buffer.getvalue())


def read_known(path: Path) -> pa.Table:
    """What `write_known` wrote."""
    return pq.read_table(path)


@dataclasses.dataclass(frozen=True)
class Known:
    """Every set's images: `exact` maps a SHA-256 to "set: item"; `hashes` uint8 [n, 32] are those of `items`."""

    exact: Mapping[str, str]
    items: Sequence[str]
    hashes: np.ndarray

    @classmethod
    def of(cls, sets: Mapping[str, pa.Table], min_quality: int) -> Known:
        """From hashes by set. Those whose PDQ has less than `min_quality` are known by their bytes alone."""
        rows = [(f"{name}: {row['item']}", row) for name, table in sets.items() for row in table.to_pylist()]
        seen = [(item, row["pdq"]) for item, row in rows if row["pdq"] and row["pdq_quality"] >= min_quality]
        hashes = np.frombuffer(b"".join(pdq for _, pdq in seen), np.uint8).reshape(len(seen), BITS // 8)
        return cls({row["sha256"]: item for item, row in reversed(rows)}, [item for item, _ in seen], hashes)

    def nearest(self, hashes: Sequence[bytes]) -> dict[int, tuple[str, int]]:
        """Place in `hashes` (PDQ, 32 bytes each) -> (the nearest known image, differing bits); empty without any.

        Exhaustive (FAISS IndexBinaryFlat), so exact; of equally near ones FAISS's first.
        """
        import faiss

        if not hashes or not self.items:
            return {}
        index = faiss.IndexBinaryFlat(BITS)
        index.add(np.ascontiguousarray(self.hashes))
        asked = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), BITS // 8)
        distances, places = index.search(np.ascontiguousarray(asked), 1)
        return {
            place: (self.items[near], int(bits))
            for place, (near, bits) in enumerate(zip(places[:, 0], distances[:, 0], strict=True))
        }
