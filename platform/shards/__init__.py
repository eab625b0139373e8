"""The shard format: WebDataset tars, each with an index beside it for random access."""

from __future__ import annotations

from .index import index_tar
from .reader import ShardReader
from .sample import BadMember, Sample, split_name
from .scan import scan_tar
from .writer import ShardWriter

__all__ = ["BadMember", "Sample", "ShardReader", "ShardWriter", "index_tar", "scan_tar", "split_name"]
