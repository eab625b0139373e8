"""A curation's run folder as the stages see it: shards, sidecars, who survived, and the ledger."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

from .config import CurationConfig
from .ledger import Ledger
from .source import Plan, Shard


@dataclasses.dataclass(frozen=True)
class CurationRun:
    """Everything a task needs, from the folder alone: a worker on another machine opens the same."""

    folder: RunFolder
    config: CurationConfig
    seed: int

    @classmethod
    def open(cls, path: Path | str) -> CurationRun:
        """An existing run; raises InputError when the folder holds none."""
        folder = RunFolder.open(path)
        tree = folder.config()
        if "curation" not in tree:
            raise InputError(f"'{path}' is no curation run", fix="give the folder that `megavlm curate run` wrote")
        return cls(folder, CurationConfig.parse(tree["curation"], where="curation"), int(tree.get("seed", 1)))

    @property
    def ledger(self) -> Ledger:
        """Which tasks are done."""
        return Ledger(self.folder.path("ledger"))

    def make_plan(self) -> None:
        """List the raw shards and write the list down; task K of a per-shard stage is entry K from here on."""
        path = self.folder.path("ledger", "shards.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, Plan.of(self.config.find(self.folder.path("ledger", "members"))).save())
        for kept in ("plan", "shards"):
            self.__dict__.pop(kept, None)

    @functools.cached_property
    def plan(self) -> Plan:
        """The planned shards in columns; raises InputError before `make_plan`."""
        path = self.folder.path("ledger", "shards.json")
        if not path.exists():
            raise InputError("this run has no list of shards yet", where=str(path), fix="megavlm curate run RECIPE")
        return Plan.parse(path.read_bytes(), where=str(path))

    @functools.cached_property
    def shards(self) -> list[Shard]:
        """The planned shards, one object each."""
        return self.plan.shards(self.config.source, self.folder.root)

    def sidecar_path(self, stage: str, shard: str) -> Path:
        """RUN/STAGE/SHARD.parquet"""
        return self.folder.path(stage, f"{shard}.parquet")

    def write_sidecar(self, stage: str, shard: str, table: pa.Table) -> None:
        """Write a sidecar whole: readers see the old one or the new one."""
        path = self.sidecar_path(stage, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomic(path, buffer.getvalue())

    def sidecar(self, stage: str, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A sidecar's columns (all when None)."""
        return pq.read_table(self.sidecar_path(stage, shard), columns=list(columns) if columns else None)

    def survivors(self, stage: str, shard: str) -> pa.Array:
        """Keys that `stage` receives from a shard: those the last judging stage before it kept, in its order."""
        judge = self.config.stages.judge_before(stage)
        if judge is None:
            raise InputError(f"stage '{stage}' receives nothing", fix="put ingest: {} first in curation.stages")
        table = self.sidecar(judge, shard, ["key", "keep"])
        return table.filter(table["keep"])["key"].combine_chunks()

    def gather(self, stage: str, shard: str, wanted: Mapping[str, Sequence[str]]) -> pa.Table:
        """What earlier stages wrote about the samples that `stage` receives.

        `wanted` maps an earlier stage to columns of its sidecar; returns `key` and those columns, one row per survivor.
        """
        keys = self.survivors(stage, shard)
        out = {"key": keys}
        for source, columns in wanted.items():
            table = self.sidecar(source, shard, ["key", "keep", *columns])
            table = table.filter(table["keep"])  # a rejected member may carry a kept sample's key
            rows = pc.index_in(keys, value_set=table["key"].combine_chunks())
            if rows.null_count:
                raise InputError(f"{source}/{shard}.parquet lacks {rows.null_count} samples that '{stage}' receives")
            out |= {column: table[column].combine_chunks().take(rows) for column in columns}
        return pa.table(out)
