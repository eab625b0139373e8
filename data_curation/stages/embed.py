"""Embed: one feature vector per image, in zarr; the model is loaded once per worker process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from megavlm.platform.errors import InputError
from megavlm.platform.images import decode

from ..embedders import EMBEDDERS
from ..features import write_features
from ..source import image_bytes, read_samples
from .base import ShardStage

if TYPE_CHECKING:
    from ..run import CurationRun
from megavlm.platform.config import point

SCHEMA = pa.schema({"key": pa.string(), "keep": pa.bool_(), "reason": pa.string()})


class Embed(ShardStage):
    """RUN/embed/SHARD.zarr: float16 [n, d], row i being sample i of the shard's sidecar."""

    needs: ClassVar[tuple[str, ...]] = ("filter",)
    judges: ClassVar[bool] = False

    embedder: point(EMBEDDERS)  # type: ignore[valid-type]

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Builds the model; images are decoded as they are needed, one batch in memory at a time."""
        shards = {shard.name: shard for shard in run.shards}
        embed, notes = self.embedder.build(run.seed)

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            keys = run.survivors(self.name, name).to_pylist()
            images = (decode(image_bytes(sample)) for sample in read_samples(shards[name], keys))
            blocks = [embed(block) for block in blocks_of(images, self.embedder.batch_size)]
            features = np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)
            if len(features) != len(keys):
                raise InputError(f"shard {name} holds {len(features)} of {len(keys)} samples", fix="run again")
            write_features(run.folder.path("embed", f"{name}.zarr"), features)
            rows = [{"key": key, "keep": True, "reason": None} for key in keys]
            return pa.Table.from_pylist(rows, schema=SCHEMA), notes | {"dimension": features.shape[1]}

        return judge


def blocks_of(items: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Lists of `size` items, the last one shorter."""
    while block := list(islice(items, size)):
        yield block
