"""The shard format: WebDataset tars, each with an index beside it for random access."""

from __future__ import annotations

from .index import index_tar
from .reader import ShardReader
from .rewrite import rewrite_without
from .sample import BadMember, Sample, split_name
from .scan import scan_tar
from .writer import ShardWriter, Written

__all__ = [
    "BadMember",
    "Sample",
    "ShardReader",
    "ShardWriter",
    "Written",
    "index_tar",
    "rewrite_without",
    "scan_tar",
    "split_name",
]
