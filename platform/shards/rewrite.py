"""Taking samples out of a finished shard."""

from __future__ import annotations

from collections.abc import Collection

from ..storage import Url, exists, remove
from .index import index_url
from .reader import ShardReader
from .writer import TarShard, Written


def rewrite_without(tar: Url, keys: Collection[str]) -> Written | None:
    """Write `tar` and its index anew without the samples `keys`: the bytes as if those had never been written.

    None when no sample is left: then tar and index are gone, as they may have been before. Killed at any moment, the
    tar is the old one or the new one; an index that fits neither is not believed (index.read_index).
    """
    reader = ShardReader(tar) if exists(tar) else None
    left = [number for number, key in enumerate(reader.keys()) if key not in keys] if reader else []
    if reader is None or not left:
        remove(index_url(tar))
        remove(tar)
        return None
    shard = TarShard(str(tar))
    try:
        for number in left:
            sample = reader.read(number)
            shard.add(sample.key, sample.fields)
    except BaseException:
        shard.abandon()
        raise
    return shard.finish()
