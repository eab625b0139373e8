"""Select: the n images nearest to each centroid (EVE 3.2: 300 of each of 50,000 clusters)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt

from .base import GlobalStage
from .sidecar import judging_schema

if TYPE_CHECKING:
    from ..run import CurationRun

SCHEMA = judging_schema(
    cluster=pa.int32(),
    cosine=pa.float32(),
    rank=pa.int32(),  # place within the cluster, 0 being the nearest to the centroid
)


class Select(GlobalStage):
    """Keeps ranks 0..nearest-1 by cosine to the centroid; ties go to the earlier shard and position."""

    needs: ClassVar[tuple[str, ...]] = ("assign",)

    nearest: PositiveInt

    def decide(self, run: CurationRun) -> tuple[dict[str, pa.Table], dict[str, Any]]:
        """Ranks every survivor within its cluster, across shards."""
        names = [shard.name for shard in run.shards]
        parts = {name: run.gather(self.name, name, {"assign": ["cluster", "cosine"]}) for name in names}
        table = pa.concat_tables(parts.values())
        ranks = ranks_in_cluster(table["cluster"].to_numpy(), table["cosine"].to_numpy())
        ends = np.cumsum([len(parts[name]) for name in names])
        tables = {
            name: self._sidecar(parts[name], r) for name, r in zip(names, np.split(ranks, ends[:-1]), strict=True)
        }
        return tables, {"clusters_used": len(np.unique(table["cluster"].to_numpy()))}

    def _sidecar(self, part: pa.Table, ranks: np.ndarray) -> pa.Table:
        rows = part.to_pylist()
        for row, rank in zip(rows, ranks.tolist(), strict=True):
            far = rank >= self.nearest
            row |= {"keep": not far, "rank": rank, "reason": "far_from_centroid" if far else None}
            row["detail"] = f"rank {rank} of cluster {row['cluster']}, kept are {self.nearest}" if far else None
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def ranks_in_cluster(clusters: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Place of each image in its cluster by falling cosine, ties in order of appearance: int64 [n]."""
    order = np.lexsort((np.arange(len(clusters)), -cosines.astype(np.float64), clusters))
    by_cluster = clusters[order]
    starts = np.flatnonzero(np.diff(by_cluster, prepend=-1))
    first_of = np.repeat(starts, np.diff(np.append(starts, len(order))))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - first_of
    return ranks
