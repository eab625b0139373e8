"""The verdict: what all methods found, put together for each image, into sidecars and the list of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..shuffle import read_part, whole
from ..stages.base import Outcome
from ..stages.sidecar import judging_schema
from .find import METHODS
from .images import Images

SCHEMA = judging_schema(
    duplicate_of=pa.string(),
    hash_distance=pa.int16(),
    similarity=pa.float32(),
)
PAIRS_SCHEMA = pa.schema(
    {
        "shard_a": pa.string(),
        "key_a": pa.string(),
        "shard_b": pa.string(),
        "key_b": pa.string(),
        "found_by": pa.string(),  # "exact", "hash", "features", joined by "+"
        "hash_distance": pa.int16(),  # differing bits of 256
        "cosine": pa.float32(),
        "dropped_a": pa.bool_(),
        "dropped_b": pa.bool_(),
    }
)


class Pair(NamedTuple):
    """An image that goes, and one for which it goes."""

    shard: int
    row: int
    other_shard: int
    other_row: int
    other_key: str
    found_by: tuple[str, ...]
    bits: int | None
    cosine: float | None


def merge(images: Images, found: Sequence[Path], notes: Mapping[str, Any]) -> Outcome:
    """Write the sidecars and pairs.parquet from what was found; returns the counts."""
    dropped = _dropped(images, found)
    outcomes, counts = [], Counter[str]()
    path = images.run.folder.path(images.stage, "pairs.parquet")
    with whole(path) as beside, pq.ParquetWriter(beside, PAIRS_SCHEMA) as writer:
        for group, shards in enumerate(images.whole.groups):
            pairs = {shard: list(of) for shard, of in groupby(_pairs(read_part(found, group)), lambda pair: pair.shard)}
            for shard in shards:
                mine = pairs.get(shard, [])
                sidecar, rows = _judged(images, shard, mine, dropped)
                images.run.write_sidecar(images.stage, images.run.plan.names[shard], sidecar)
                writer.write_table(rows)
                outcomes.append(Outcome.of(sidecar))
                counts.update(method for pair in mine for method in pair.found_by)
                counts["pairs"] += len(mine)
    told = {"pairs": counts["pairs"]} | {f"pairs_{method}": counts[method] for method in METHODS}
    return Outcome.total(outcomes, told | dict(notes))


def _dropped(images: Images, found: Sequence[Path]) -> np.ndarray:
    """bool [images embedded], in the order of (shard, row): one byte for each is all that is held of the whole run."""
    dropped = np.zeros(int(images.whole.counts.sum()), bool)
    for group in range(len(images.whole.groups)):
        part = read_part(found, group)
        dropped[images.whole.starts[part["shard"]] + part["row"]] = True
    return dropped


def _judged(images: Images, shard: int, pairs: list[Pair], dropped: np.ndarray) -> tuple[pa.Table, pa.Table]:
    """A shard's sidecar and its rows of pairs.parquet."""
    table, rows = images.received(shard)
    keys = dict(zip(rows.tolist(), table["key"].to_pylist(), strict=True))
    listed = [_pair_row(images, keys, pair, dropped) for pair in pairs]
    return _sidecar(keys, pairs), pa.Table.from_pylist(listed, schema=PAIRS_SCHEMA)


def _pairs(found: dict[str, np.ndarray]) -> Iterator[Pair]:
    """By image, the other that stays most surely first; what several methods found is one pair."""
    names = ("shard", "row", "other_rank_a", "other_rank_b", "other_shard", "other_row", "method")
    order = np.lexsort([found[name] for name in reversed(names)])
    rows = zip(*(found[name][order].tolist() for name in (*names, "other_key", "bits", "cosine")), strict=True)
    for (shard, row, _, _, other_shard, other_row), group in groupby(rows, lambda record: record[:6]):
        records = list(group)
        bits = max(record[8] for record in records)
        cosines = [record[9] for record in records if not np.isnan(record[9])]
        yield Pair(
            shard,
            row,
            other_shard,
            other_row,
            records[0][7],
            tuple(METHODS[record[6]] for record in records),
            bits if bits >= 0 else None,
            cosines[0] if cosines else None,
        )


def _sidecar(keys: Mapping[int, str], pairs: list[Pair]) -> pa.Table:
    """One row per image; the reason names the strongest evidence for the better one: equal bytes, looks, features."""
    best: dict[int, Pair] = {}
    for pair in pairs:
        best.setdefault(pair.row, pair)
    return pa.Table.from_pylist([_row(key, best.get(row)) for row, key in keys.items()], schema=SCHEMA)


def _row(key: str, pair: Pair | None) -> dict[str, Any]:
    if pair is None:
        return {"key": key, "keep": True}
    return {
        "key": key,
        "keep": False,
        "reason": f"duplicate_{pair.found_by[0]}",
        "detail": f"of {pair.other_key}",
        "duplicate_of": pair.other_key,
        "hash_distance": pair.bits,
        "similarity": pair.cosine,
    }


def _pair_row(images: Images, keys: Mapping[int, str], pair: Pair, dropped: np.ndarray) -> dict[str, Any]:
    """The earlier image of the two is a."""
    names, starts = images.run.plan.names, images.whole.starts
    ends = sorted([
        (pair.shard, pair.row, keys[pair.row]),
        (pair.other_shard, pair.other_row, pair.other_key),
    ])  # fmt: skip
    row: dict[str, Any] = {"found_by": "+".join(pair.found_by), "hash_distance": pair.bits, "cosine": pair.cosine}
    for letter, (shard, place, key) in zip("ab", ends, strict=True):
        gone = bool(dropped[starts[shard] + place])
        row |= {f"shard_{letter}": names[shard], f"key_{letter}": key, f"dropped_{letter}": gone}
    return row
