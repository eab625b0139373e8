"""Writes the demo's raw data as img2dataset leaves it: tars of successes, a parquet of all rows, stats per shard.

Duplicates and bad files are planted on the way; `truth.json` beside the shards says which. Only the scoring reads it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .photos import crops, jpeg
from .plants import COPIES, Plant, bad_files, odd_files

SAMPLES_PER_SHARD = 100
COPIES_PER_KIND = 24


@dataclasses.dataclass(frozen=True)
class _Row:
    """One crawled sample before it has a key."""

    caption: str | None
    extension: str
    data: bytes
    kind: str = "original"
    copy_of: int | None = None  # position of the original among the crops
    reason: str | None = None
    json: bytes | None = None


def write_crawl(folder: Path, seed: int = 1) -> dict[str, object]:
    """Fill `folder` with shards and return the truth: `{"images", "copies": {key: {kind, of}}, "bad": {key: reason}}`.

    Deterministic in `seed`. The folder appears complete or not at all.
    """
    rng = np.random.default_rng(seed)
    rows = _rows(rng)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    keys = [f"{i // SAMPLES_PER_SHARD:05d}{i % SAMPLES_PER_SHARD:04d}" for i in range(len(rows))]
    for start in range(0, len(rows), SAMPLES_PER_SHARD):
        part = slice(start, start + SAMPLES_PER_SHARD)
        _write_shard(partial / f"{start // SAMPLES_PER_SHARD:05d}", keys[part], rows[part])
    truth = _truth(keys, rows) | _damage(partial, keys, rows)
    (partial / "truth.json").write_text(json.dumps(truth, indent=1))
    partial.rename(folder)
    return truth


def _rows(rng: np.random.Generator) -> list[_Row]:
    originals = crops(rng)
    rows = [_Row(caption, "jpg", jpeg(image)) for caption, image in originals]
    chosen = rng.choice(len(originals), size=(len(COPIES), COPIES_PER_KIND), replace=False)
    for (kind, make), positions in zip(COPIES.items(), chosen, strict=True):
        for i in map(int, positions):
            caption, image = originals[i]
            rows.append(_Row(caption, "jpg", make(image, rng), kind=kind, copy_of=i))
    planted = bad_files(originals[0][1]) + odd_files(_fresh(originals, rng))
    rows += [_row_of(plant) for plant in planted]
    return [rows[i] for i in _mixed(len(rows), rng)]


def _fresh(originals: list[tuple[str, Image.Image]], rng: np.random.Generator) -> list[Image.Image]:
    """Five crops turned upside down, so that a converted format is nobody's near-duplicate."""
    return [originals[int(i)][1].rotate(180) for i in rng.choice(len(originals), size=5, replace=False)]


def _row_of(plant: Plant) -> _Row:
    return _Row(plant.caption, plant.extension, plant.data, kind=plant.kind, reason=plant.reason, json=plant.json)


def _mixed(count: int, rng: np.random.Generator) -> list[int]:
    return [int(i) for i in rng.permutation(count)]


def _write_shard(stem: Path, keys: list[str], rows: list[_Row]) -> None:
    with tarfile.open(f"{stem}.tar", "w") as tar:
        for key, row in zip(keys, rows, strict=True):
            for extension, data in _members(key, row).items():
                _add(tar, f"{key}.{extension}", data)
    _write_rows(stem, keys, rows)


def _members(key: str, row: _Row) -> dict[str, bytes]:
    meta = row.json if row.json is not None else json.dumps({"key": key, "url": f"https://example.org/{key}"}).encode()
    caption = {} if row.caption is None else {"txt": row.caption.encode()}
    return {row.extension: row.data} | caption | {"json": meta}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _write_rows(stem: Path, keys: list[str], rows: list[_Row]) -> None:
    """The parquet also lists a row that was never downloaded, as a real crawl's does."""
    table: list[dict[str, str | None]] = [
        {
            "url": f"https://example.org/{key}",
            "caption": row.caption,
            "key": key,
            "status": "success",
            "error_message": None,
        }
        for key, row in zip(keys, rows, strict=True)
    ]
    lost: dict[str, str | None] = {"url": "https://example.org/lost", "caption": "lost", "key": f"{stem.name}9999"}
    table.append(lost | {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"})
    pq.write_table(pa.Table.from_pylist(table), f"{stem}.parquet")
    stats = {"count": len(table), "successes": len(rows), "failed_to_download": 1, "failed_to_resize": 0}
    Path(f"{stem}_stats.json").write_text(json.dumps(stats))


def _truth(keys: list[str], rows: list[_Row]) -> dict[str, object]:
    """Which key copies which. Originals are found again by their bytes' position in the unmixed list: their caption."""
    by_caption = {row.caption: key for key, row in zip(keys, rows, strict=True) if row.kind == "original"}
    pairs = list(zip(keys, rows, strict=True))
    return {
        "images": len(rows),
        "copies": {
            key: {"kind": row.kind, "of": by_caption[row.caption]} for key, row in pairs if row.copy_of is not None
        },
        "bad": {key: {"kind": row.kind, "reason": row.reason} for key, row in pairs if row.reason},
        "odd": {
            key: row.kind for key, row in pairs if row.kind != "original" and row.copy_of is None and not row.reason
        },
    }


def _damage(folder: Path, keys: list[str], rows: list[_Row]) -> dict[str, object]:
    """One more shard: a duplicated key, a name that leaves the folder, a cut in the middle of its last member."""
    stem = folder / f"{len(keys) // SAMPLES_PER_SHARD + 1:05d}"
    image = next(row for row in rows if row.kind == "original")
    turned = jpeg(Image.open(io.BytesIO(image.data)).transpose(Image.Transpose.FLIP_TOP_BOTTOM))
    kept = dataclasses.replace(image, kind="before the cut", data=turned)
    names = [f"{stem.name}{i:04d}" for i in range(3)]
    with tarfile.open(f"{stem}.tar", "w") as tar:
        for extension, data in _members(names[0], kept).items():
            _add(tar, f"{names[0]}.{extension}", data)
        _add(tar, f"{names[0]}.jpg", image.data)
        _add(tar, "../outside.jpg", image.data)
        _add(tar, f"{names[2]}.jpg", image.data)
    whole = Path(f"{stem}.tar").read_bytes()
    cut = whole.rindex(f"{names[2]}.jpg".encode()) + 512 + len(image.data) // 2
    Path(f"{stem}.tar").write_bytes(whole[:cut])
    _write_rows(stem, [names[0], names[2]], [kept, image])
    reasons = {"duplicated key": "duplicate_key", "name with ../": "unsafe_name", "truncated tar": "truncated_tar"}
    return {"damaged_shard": stem.name, "damaged": reasons, "before_the_cut": names[0]}
