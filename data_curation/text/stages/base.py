"""What the text stages share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pyarrow as pa

from megavlm.platform.errors import ConfigError

from ..source import TextSets

if TYPE_CHECKING:
    from ...run import CurationRun

INGEST = "text_ingest"
BATCH = 4096  # rows that are Python objects at a time; a set may be one file of half a million


@runtime_checkable
class Checked(Protocol):
    """A stage that can say, before the first one runs, that its inputs are not there."""

    def check_inputs(self) -> None:
        """Raises InputError."""


def text_source(run: CurationRun) -> TextSets:
    """The run's source; raises ConfigError when it is one of images."""
    source = run.config.source
    if not isinstance(source, TextSets):
        fix = "curation.source: {kind: text, path: FOLDER, sets: {FOLDER: FORMAT}}"
        raise ConfigError(f"source kind '{source.kind}' holds images, not text", where="curation.source.kind", fix=fix)
    return source


def table_of(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """The rows as a table, in batches."""
    left = iter(rows)
    batches = iter(lambda: list(itertools.islice(left, BATCH)), [])
    return pa.Table.from_batches([pa.RecordBatch.from_pylist(batch, schema=schema) for batch in batches], schema)
