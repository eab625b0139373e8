"""Deduplicate: of equal files, equal-looking images (PDQ) and near features in a cluster (SemDeDup), one stays."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt

from megavlm.platform.storage import write_atomic

from ..duplicates import Pairs, earlier_neighbour, exact_pairs, feature_pairs, hash_pairs, members_of
from ..features import read_features, unit
from ..hashing import distance
from .base import GlobalStage
from .cluster import read_array
from .sidecar import judging_schema

if TYPE_CHECKING:
    from ..run import CurationRun

HashPair = tuple[int, int, int]  # i, j, differing bits
WANTED = {
    "filter": ["width", "height", "bytes", "sha256", "pdq", "pdq_quality"],
    "assign": ["cluster", "cosine"],
}

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


class Deduplicate(GlobalStage):
    """RUN/deduplicate/pairs.parquet lists every pair and which method found it; the sidecars say who stays.

    Pairs by perceptual hash are looked for among all images, exhaustively: exact, and quadratic in their number;
    `hash_scope: cluster` looks inside clusters only, and so scales as SemDeDup does.
    """

    needs: ClassVar[tuple[str, ...]] = ("filter", "embed", "assign")

    hash_radius: NonNegativeInt | None = 31  # differing bits of 256, inclusive; null: no perceptual hash
    min_hash_quality: int = 50  # PDQ's own advice: below it a hash says nothing
    hash_scope: Literal["all", "cluster"] = "all"
    epsilon: float | None = Field(default=None, ge=0, le=2)  # features: a pair at cosine >= 1 - epsilon; null: none
    # A pair found by features alone counts only when its hashes differ in at most this many bits: for features that see
    # too much alike, such as random weights. null: features decide alone, which is SemDeDup.
    confirm_radius: NonNegativeInt | None = None
    # Who stays: the largest image (then the largest file), or SemDeDup's member farthest from (hard) or nearest to
    # (easy) its centroid. Ties go to the earlier shard and position.
    keep: Literal["largest", "hard", "easy"] = "largest"

    def decide(self, run: CurationRun) -> tuple[dict[str, pa.Table], dict[str, Any]]:
        """One pass over everything that survived, across shards."""
        table = _load(run, self.name)
        pairs = self.find(table, _features(run, table) if self.epsilon is not None else None)
        winner = earlier_neighbour(pairs.array(), self.ranks(table))
        _write_pairs(run, table, pairs, winner)
        notes = {f"pairs_{method}": pairs.count(method) for method in ("exact", "hash", "features")}
        return _sidecars(run, table, pairs, winner), notes | {"pairs": len(pairs)}

    def find(self, table: pa.Table, features: np.ndarray | None) -> Pairs:
        """Every pair of rows with the methods that found it. `features` are unit rows float32 [n, d]."""
        pairs, clusters = Pairs(), table["cluster"].to_numpy()
        hashes = np.frombuffer(b"".join(table["pdq"].to_pylist()), np.uint8).reshape(len(table), 32)
        for i, j in exact_pairs(table["sha256"].to_pylist()):
            pairs.add(i, j, "exact")
        for i, j, bits in self._hash_pairs(hashes, table["pdq_quality"].to_numpy(), clusters):
            pairs.add(i, j, "hash", hash_distance=bits)
        for i, j, cosine in self._feature_pairs(features, clusters):
            bits = distance(hashes[i], hashes[j])
            if self.confirm_radius is None or bits <= self.confirm_radius:
                pairs.add(i, j, "features", cosine=cosine, hash_distance=bits)
        return pairs

    def _hash_pairs(self, hashes: np.ndarray, quality: np.ndarray, clusters: np.ndarray) -> Iterator[HashPair]:
        if self.hash_radius is None:
            return
        for members in [np.arange(len(hashes))] if self.hash_scope == "all" else members_of(clusters):
            found = hash_pairs(hashes[members], quality[members], self.hash_radius, self.min_hash_quality)
            yield from ((int(members[i]), int(members[j]), bits) for i, j, bits in found)

    def _feature_pairs(self, features: np.ndarray | None, clusters: np.ndarray) -> Iterator[tuple[int, int, float]]:
        if features is not None and self.epsilon is not None:
            yield from feature_pairs(features, clusters, 1.0 - self.epsilon)

    def ranks(self, table: pa.Table) -> np.ndarray:
        """Place of each row in the order of who stays, int64 [n], 0 first."""
        columns = {name: table[name].to_numpy().astype(np.float64) for name in ("width", "height", "bytes", "cosine")}
        area = columns["width"] * columns["height"]
        keys = {"largest": (-columns["bytes"], -area), "hard": (columns["cosine"],), "easy": (-columns["cosine"],)}
        order = np.lexsort((np.arange(len(table)), *keys[self.keep]))  # the last key sorts first
        ranks = np.empty(len(table), dtype=np.int64)
        ranks[order] = np.arange(len(table))
        return ranks


def _load(run: CurationRun, stage: str) -> pa.Table:
    """Every survivor of every shard, in order, with its shard."""
    parts = [(shard.name, run.gather(stage, shard.name, WANTED)) for shard in run.shards]
    return pa.concat_tables([part.append_column("shard", pa.repeat(name, len(part))) for name, part in parts])


def _features(run: CurationRun, table: pa.Table) -> np.ndarray:
    """Unit features of the rows of `table`: embed wrote them for the same survivors in the same order."""
    mean = read_array(run.folder.path("cluster", "mean.npy"))
    shards = dict.fromkeys(table["shard"].to_pylist())
    return np.concatenate([unit(read_features(run, name), mean) for name in shards] or [np.empty((0, len(mean)))])


def _write_pairs(run: CurationRun, table: pa.Table, pairs: Pairs, winner: np.ndarray) -> None:
    shards, keys = table["shard"].to_pylist(), table["key"].to_pylist()
    rows = [
        {
            "shard_a": shards[i],
            "key_a": keys[i],
            "shard_b": shards[j],
            "key_b": keys[j],
            "found_by": "+".join(pair.found_by),
            "hash_distance": pair.hash_distance,
            "cosine": pair.cosine,
            "dropped_a": bool(winner[i] >= 0),
            "dropped_b": bool(winner[j] >= 0),
        }
        for (i, j), pair in sorted(pairs.items())
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA), buffer)
    write_atomic(run.folder.path("deduplicate", "pairs.parquet"), buffer.getvalue())


def _sidecars(run: CurationRun, table: pa.Table, pairs: Pairs, winner: np.ndarray) -> dict[str, pa.Table]:
    keys = table["key"].to_pylist()
    rows: dict[str, list[dict[str, Any]]] = {shard.name: [] for shard in run.shards}
    for index, shard in enumerate(table["shard"].to_pylist()):
        rows[shard].append(_row(index, keys, int(winner[index]), pairs))
    return {shard: pa.Table.from_pylist(found, schema=SCHEMA) for shard, found in rows.items()}


def _row(index: int, keys: list[str], other: int, pairs: Pairs) -> dict[str, Any]:
    """The reason names the strongest evidence against the better image: equal bytes, then looks, then features."""
    if other < 0:
        return {"key": keys[index], "keep": True}
    pair = pairs[min(index, other), max(index, other)]
    return {
        "key": keys[index],
        "keep": False,
        "reason": f"duplicate_{pair.found_by[0]}",
        "detail": f"of {keys[other]}",
        "duplicate_of": keys[other],
        "hash_distance": pair.hash_distance,
        "similarity": pair.cosine,
    }
