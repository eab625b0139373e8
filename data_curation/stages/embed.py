"""Embed: one feature vector per image, in zarr; the model is loaded once per worker process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt

from megavlm.platform.config import point
from megavlm.platform.errors import InputError
from megavlm.platform.images import BadImage, ImageDecoder, decode, load_decoder

from ..embedders import EMBEDDERS
from ..features import write_features
from ..source import image_bytes, read_samples
from .base import ShardStage

if TYPE_CHECKING:
    from ..run import CurationRun

SCHEMA = pa.schema({"key": pa.string(), "keep": pa.bool_(), "reason": pa.string()})
Item = TypeVar("Item")
Made = TypeVar("Made")


class Embed(ShardStage):
    """RUN/embed/SHARD.zarr: float16 [n, d], row i being sample i of the shard's sidecar."""

    needs: ClassVar[tuple[str, ...]] = ("filter",)
    judges: ClassVar[bool] = False

    embedder: point(EMBEDDERS)  # type: ignore[valid-type]
    decoder: str = "exact"  # one of platform's image decoders; `fast` decodes no larger than the model looks
    decode_threads: PositiveInt = 1  # decode and resize the next batches while the model works on one
    prefetch: PositiveInt = 2  # batches decoded ahead, which is what they cost in memory

    def decisive(self) -> dict[str, Any]:
        """All but who decodes when. The batch stays: a matrix product of another shape may add in another order."""
        return self.model_dump(mode="json", exclude={"decode_threads", "prefetch"})

    def lacks(self) -> str | None:
        """The embedder's weights or package."""
        lacks: Callable[[], str | None] = getattr(self.embedder, "lacks", lambda: None)
        return lacks()

    def stand_in(self) -> dict[str, Any]:
        """Pixels, as many values as most CLIP models have."""
        return {"embedder": {"name": "pixels", "side": 16}}

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Builds the model; a few batches of images are in memory at a time."""
        shards = {shard.name: shard for shard in run.shards}
        decoder = load_decoder(self.decoder)
        embed, notes = self.embedder.build(run.seed)

        def prepared(files: list[bytes]) -> np.ndarray:
            return np.stack([embed.prepare(image) for image in decoded(files, decoder, notes["image_size"])])

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            keys = run.survivors(self.name, name).to_pylist()
            files = blocks_of(map(image_bytes, read_samples(shards[name], keys)), self.embedder.batch_size)
            batches = ahead(files, prepared, self.decode_threads, self.prefetch)
            blocks = [embed.forward(batch) for batch in batches]
            features = np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)
            if len(features) != len(keys):
                raise InputError(f"shard {name} holds {len(features)} of {len(keys)} samples", fix="run again")
            write_features(run.folder.path("embed", f"{name}.zarr"), features)
            rows = [{"key": key, "keep": True, "reason": None} for key in keys]
            return pa.Table.from_pylist(rows, schema=SCHEMA), notes | {"dimension": features.shape[1]}

        return judge


def decoded(files: list[bytes], decoder: ImageDecoder, side: int) -> list[np.ndarray]:
    """The images of files that `filter` could decode, at least `side` pixels where they were that large.

    What this decoder cannot use is decoded as `filter` did it.
    """
    found = decoder.images(files, min_side=side)
    return [decode(data) if isinstance(one, BadImage) else one for data, one in zip(files, found, strict=True)]


def blocks_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    rest = iter(items)
    while block := list(islice(rest, size)):
        yield block


def ahead(items: Iterable[Item], work: Callable[[Item], Made], threads: int, depth: int) -> Iterator[Made]:
    """`work` of each item in order, up to `depth` of them done or under way before they are asked for."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # whoever asked has had enough: begin nothing more
            for future in waiting:
                future.cancel()
