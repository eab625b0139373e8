"""LAION's tables of links and captions, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

from megavlm.platform.errors import ConfigError
from megavlm.platform.shards import BadMember, Sample

from ..source import Shard
from .base import Source
from .parquet_rows import parquet_shards


class LaionMetadata(Source):
    """Every .parquet file is a shard of rows without images; the stage `links` filters them.

    The plain releases of LAION-5B name the width HEIGHT and the height WIDTH; the joined ones and Re-LAION do not.
    """

    kind: str = "laion_metadata"
    layout: Literal["detect", "plain", "joined", "relaion"] = "detect"  # metadata/layouts.py

    def find(self, members: Path) -> list[Shard]:
        """By name."""
        return parquet_shards(self)

    def read(
        self, shard: Shard, keys: Collection[str] | None = None, images: bool = True
    ) -> Iterator[Sample | BadMember]:
        """Raises ConfigError: there are links here, and no images yet."""
        raise ConfigError(
            "a source of kind laion_metadata holds links, not images",
            where="curation.source.kind",
            fix="curation.stages: {links: {}}, then run img2dataset with the command it writes, then curate its output",
        )
        yield
