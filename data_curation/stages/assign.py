"""Assign: each image's nearest centroid and its cosine to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from ..features import read_features, unit
from .base import ShardStage
from .cluster import nearest, read_array

if TYPE_CHECKING:
    from ..run import CurationRun


class Assign(ShardStage):
    """Writes cluster (int32) and cosine (float32) for every embedded image."""

    needs: ClassVar[tuple[str, ...]] = ("embed", "cluster")
    judges: ClassVar[bool] = False

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Loads the centroids once."""
        centroids, mean = (read_array(run.folder.path("cluster", f"{name}.npy")) for name in ("centroids", "mean"))

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            keys = run.sidecar("embed", name, ["key"])["key"]
            features = read_features(run, name) if len(keys) else np.empty((0, len(mean)), np.float32)
            clusters, cosines = nearest(unit(features, mean), centroids)
            columns = {
                "key": keys,
                "keep": pa.repeat(True, len(keys)),
                "reason": pa.nulls(len(keys), pa.string()),
                "cluster": pa.array(clusters, pa.int32()),
                "cosine": pa.array(cosines, pa.float32()),
            }
            return pa.table(columns), {}

        return judge
