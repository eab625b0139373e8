"""Links: filter LAION's tables before the download, and write the command that downloads what is left."""

from __future__ import annotations

import json
from collections import Counter
from typing import IO, TYPE_CHECKING, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.storage import open_atomic, open_file, write_atomic

from ..metadata.command import Download, script
from ..metadata.layouts import NAMES, find_layout
from ..metadata.rules import LinkRules
from ..sources.laion_metadata import LaionMetadata
from ..sources.parquet_rows import Lost, batches, open_parquet
from .base import Outcome, Stage, Worker

if TYPE_CHECKING:
    from ..run import CurationRun
    from ..source import Shard

ROWS = 65_536  # in memory at a time


class Links(Stage):
    """RUN/links/tables/{shard}.parquet holds the rows that break no rule, RUN/links/download.sh fetches them.

    Needs a source of kind laion_metadata. Dropped rows are counted by reason and not listed: there are billions.
    """

    judges: ClassVar[bool] = False

    rules: LinkRules = LinkRules()
    download: Download = Download()

    def worker(self, run: CurationRun) -> Worker:
        """One table of links, in pieces."""
        source = run.config.source
        if not isinstance(source, LaionMetadata):
            fix = "curation.source: {kind: laion_metadata, path: FOLDER}"
            raise ConfigError(
                f"links come from tables, not from '{source.kind}'", where="curation.source.kind", fix=fix
            )

        def work(task: int) -> Outcome:
            shard = run.shards[task]
            with open_atomic(run.folder.path("links", "tables", f"{shard.name}.parquet")) as out:
                return self._filter(shard, source.layout, out)

        return work

    def finish(self, run: CurationRun) -> None:
        """Write the command beside the tables, as a list of words (JSON) and as a script; remove other runs' tables."""
        folder, columns = run.folder.path("links", "tables"), set()
        for path in folder.glob("*.parquet"):
            if path.stem in run.plan.names:
                columns |= set(pq.read_schema(path).names)
            else:
                path.unlink()
        argv = self.download.argv("tables", columns, self.rules.min_side, self.rules.max_aspect)
        write_atomic(folder.parent / "download.json", json.dumps(argv, indent=1).encode())
        write_atomic(folder.parent / "download.sh", script(argv).encode())

    def _filter(self, shard: Shard, layout: str, out: IO[bytes]) -> Outcome:
        with open_file(shard.url) as file:
            parquet = open_parquet(file, shard.url)
            found = find_layout(parquet.schema_arrow.names, layout, shard.url)
            self._check_columns(set(found.columns), shard.url)
            schema = found.rename(parquet.schema_arrow.empty_table()).schema
            dropped: Counter[str] = Counter()
            notes, kept = {"layout": found.name}, 0
            with pq.ParquetWriter(out, schema) as writer:
                for piece in batches(parquet, list(found.columns.values()), ROWS):
                    if isinstance(piece, Lost):
                        dropped["corrupt_parquet"] += piece.rows
                        notes["damage"] = f"{shard.url}: {piece}"
                        continue
                    passed = self._passed(found.rename(piece[1]), shard, dropped)
                    kept += len(passed)
                    writer.write_table(passed)
        return Outcome(kept + dropped.total(), kept, dict(sorted(dropped.items())), notes)

    def _passed(self, table: pa.Table, shard: Shard, dropped: Counter[str]) -> pa.Table:
        """The rows that break no rule; the others are counted."""
        try:
            reasons = self.rules.reasons(table)
        except pa.ArrowException as error:
            fix = "curation.source.layout, or another file"
            raise InputError(f"columns of another type: {error}", where=shard.url, fix=fix) from error
        dropped.update(reason for reason in reasons if reason is not None)
        return table.filter(pa.array([reason is None for reason in reasons]))

    def _check_columns(self, columns: set[str], where: str) -> None:
        for column, option in self.rules.needed().items():
            if column not in columns:
                names = "/".join(NAMES[column])
                off = "0" if option == "min_side" else "null"
                fix = f"curation.stages.links.rules.{option}={off}, or another release"
                raise ConfigError(f"rule '{option}' needs a column {names}", where=where, fix=fix)
