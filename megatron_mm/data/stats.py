"""The figures of a pack manifest, read block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .format import REJECTED
from .manifest import Manifest

SHORTEST = 16  # tokens up to which the first bar of the histogram of samples' lengths goes; each next twice as far
ADDED = ("samples", "tokens", "tokens_learnt", "images", "tiles", "packs_without_image", "samples_without_substitute")
BY_SET = ("samples", "tokens", "tokens_learnt", "images")


class _Sums:
    """What is added up over the blocks."""

    def __init__(self, sets: int, capacity: int) -> None:
        self.totals: Counter[str] = Counter()
        self.by_set = np.zeros((sets, len(BY_SET)), np.int64)
        self.passes = np.zeros(sets, np.int64)
        doubled = [SHORTEST << k for k in range((capacity // SHORTEST).bit_length())]
        self.edges = [*(edge for edge in doubled if edge < capacity), capacity]  # where bars end, in tokens
        self.lengths = np.zeros(len(self.edges), np.int64)

    def add(self, block: pa.RecordBatch) -> None:
        flat = {name: column.flatten() for name, column in zip(block.schema.names, block.columns, strict=True)}
        tokens, tiles = flat["tokens"].to_numpy(), flat["images"].flatten().flatten().to_numpy()[::3]
        numbers, epochs = flat["set"].to_numpy(), flat["epoch"].to_numpy()
        images = pc.list_value_length(flat["images"]).to_numpy()
        rows = pc.list_parent_indices(block["index"]).to_numpy()
        with_image = np.bincount(rows, weights=images, minlength=block.num_rows) > 0
        self.totals.update(
            samples=len(tokens),
            tokens=int(tokens.sum(dtype=np.int64)),
            tokens_learnt=int(flat["targets"].to_numpy().sum(dtype=np.int64)),
            tiles=int(tiles.sum(dtype=np.int64)),
            images=len(tiles),
            packs_without_image=int(np.count_nonzero(~with_image)),
            samples_without_substitute=int(np.count_nonzero(flat["substitute"].to_numpy() < 0)),
        )
        shown = np.bincount(pc.list_parent_indices(flat["images"]).to_numpy(), minlength=len(tokens))
        each = (np.ones(len(tokens)), tokens, flat["targets"].to_numpy(), shown)
        sums = [np.bincount(numbers, weights=of, minlength=len(self.by_set)) for of in each]
        self.by_set += np.stack(sums, axis=1).astype(np.int64)
        np.maximum.at(self.passes, numbers, epochs + 1)
        self.lengths += np.bincount(np.searchsorted(self.edges, tokens), minlength=len(self.edges))


def stats(manifest: Manifest) -> dict[str, Any]:
    """The figures of a manifest under stable keys. `lengths`: samples by tokens, up to each bar's end."""
    names, capacity = [told["name"] for told in manifest.sets], manifest.sequence_length
    sums = _Sums(len(names), capacity)
    for _, block in manifest.blocks():
        sums.add(block)
    fill = sums.totals["tokens"] / max(len(manifest) * capacity, 1)
    return {
        "packs": len(manifest),
        "batches": manifest.batches,
        "batch": manifest.fingerprint["batch"],
        "sequence_length": capacity,
        "fill": round(fill, 4),
        "padding": round(1 - fill, 4),
        **{key: sums.totals[key] for key in ADDED},
        "text": _text(names, sums.by_set, manifest.fingerprint.get("text") or {}),
        "samples_by_set": dict(zip(names, sums.by_set[:, 0].tolist(), strict=True)),
        "epochs_by_set": dict(zip(names, sums.passes.tolist(), strict=True)),
        "lengths": dict(zip(map(str, sums.edges), sums.lengths.tolist(), strict=True)),
        "rejected": rejected_counts(manifest.path),
    }


def _text(names: Sequence[str], by_set: np.ndarray, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the draws that comes from text-only sets, as asked for (None: not) and as it is.

    These sets are the recipe's `text_sets` where it asks for a share, else those of which no image was drawn.
    """
    found = asked.get("text_sets") or [name for name, sums in zip(names, by_set, strict=True) if not sums[3]]
    of_text = by_set[[names.index(name) for name in found if name in names]].sum(axis=0)
    parts = of_text / np.maximum(by_set.sum(axis=0), 1)
    shares = {kind: round(float(part), 6) for kind, part in zip(BY_SET[:3], parts, strict=False)}
    return {"sets": found, "asked": asked.get("text_share"), "of": asked.get("text_share_of"), **shares}


def rejected_counts(path: Path) -> dict[str, int]:
    """reason -> number of samples left out of the manifest at `path`."""
    counts: Counter[str] = Counter()
    with pq.ParquetFile(path / REJECTED) as file:
        for batch in file.iter_batches(columns=["reason"]):
            counts.update({each["values"]: each["counts"] for each in batch["reason"].value_counts().to_pylist()})
    return dict(sorted(counts.items()))
