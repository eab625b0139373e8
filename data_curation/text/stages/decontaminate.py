"""Text decontamination: samples that hold a benchmark's questions or answers are dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from megavlm.platform.errors import ConfigError, InputError, MegaVLMError
from megavlm.platform.storage import file_size

from ...stages.base import ShardStage
from ...stages.sidecar import judging_schema
from ..benchmarks import columns_of, find_files, read_items
from ..overlap import GRAM, SHORTEST, Leak, OverlapIndex
from .base import table_of
from .conversations import conversations

if TYPE_CHECKING:
    from ...run import CurationRun

SCHEMA = judging_schema(
    benchmark=pa.string(),
    item=pa.int64(),  # its number in the benchmark's files, from 0
    ngram=pa.string(),  # the words that the sample shares with it
)


class TextDecontaminate(ShardStage):
    """Drops as `benchmark_leak` every sample one of whose messages shares n words in a row with an item.

    The rules and their source: `text.overlap`. In memory are 12 bytes per different n-gram of the benchmarks.
    """

    needs: ClassVar[tuple[str, ...]] = ("text_ingest",)
    from_sidecars: ClassVar[bool] = True
    measures_by: ClassVar[tuple[str, ...]] = ("folder", "benchmarks", "columns", "files")  # other files, not thresholds

    folder: str  # holds NAME.jsonl, NAME.parquet, ... or a folder NAME with such files, for every benchmark
    benchmarks: tuple[str, ...] = Field(min_length=1)
    columns: dict[str, tuple[str, ...]] = {}  # of benchmarks that `text.benchmarks` does not know, or other ones
    n: PositiveInt = GRAM
    shortest: PositiveInt = SHORTEST  # items of fewer words count where they are a whole message
    # Filled in when a run is made: bytes of each file, so that other files count as other options. A worker takes no
    # other ones.
    files: dict[str, int] | None = None

    @field_validator("files")
    @classmethod
    def _in_the_folder(cls, told: dict[str, int] | None, info: ValidationInfo) -> dict[str, int] | None:
        known = told is not None or not {"folder", "benchmarks"} <= info.data.keys()
        return told if known else _sizes(info.data["folder"], info.data["benchmarks"])

    @model_validator(mode="after")
    def _lengths(self) -> TextDecontaminate:
        if self.shortest > self.n:
            raise ConfigError(f"shortest {self.shortest} is more than n {self.n}", where="shortest", fix="at most n")
        return self

    def check_inputs(self) -> None:
        """Raises InputError for a benchmark without files or known columns, and for files that have changed."""
        for name in self.benchmarks:
            columns_of(name, self.columns)
            find_files(self.folder, name)
        if _sizes(self.folder, self.benchmarks) != self.files:
            fix = "`megavlm curate run RECIPE` again does the stage anew with them"
            raise InputError("these files are not those that this run was made with", where=self.folder, fix=fix)

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Reads the benchmarks once per process."""
        self.check_inputs()
        index = self.index()
        facts = {"benchmarks": list(self.benchmarks), "items": len(index.items), "grams": index.grams}

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            samples = conversations(run, self.name, name)
            table = table_of((_row(row["key"], index.find(_texts(row))) for row in samples), SCHEMA)
            leaks = Counter(filter(None, table["benchmark"].to_pylist()))
            return table, facts | {"leaks": dict(sorted(leaks.items()))}

        return judge

    def index(self) -> OverlapIndex:
        """The n-grams of all benchmarks; raises InputError."""
        items = {
            name: read_items(find_files(self.folder, name), columns_of(name, self.columns)) for name in self.benchmarks
        }
        return OverlapIndex(items, self.n, self.shortest)


def _texts(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"]]


def _row(key: str, leak: Leak | None) -> dict[str, Any]:
    if leak is None:
        return {"key": key, "keep": True}
    detail = f"{leak.benchmark} item {leak.item}: {json.dumps(leak.ngram, ensure_ascii=False)}"
    facts = {"benchmark": leak.benchmark, "item": leak.item, "ngram": leak.ngram}
    return {"key": key, "keep": False, "reason": "benchmark_leak", "detail": detail, **facts}


def _sizes(folder: str, names: Sequence[str]) -> dict[str, int]:
    """What of the benchmarks' files is there; what is not is told when the run begins, not when a recipe is shown."""
    found: dict[str, int] = {}
    for name in names:
        try:
            found |= {url: file_size(url) for url in find_files(folder, name)}
        except MegaVLMError:
            continue
    return found
