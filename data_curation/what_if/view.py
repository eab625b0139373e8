"""A run as it would be under other options: what is decided anew lies elsewhere, everything else is the run's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from megavlm.platform.runs import RunFolder

from ..config import CurationConfig
from ..run import CurationRun


class Overlay(RunFolder):
    """`places` maps stages that are decided anew to the folders they write to.

    Other stages and the ledger are the run's own, to be read; any further path leads to `rest`, so that no stage can
    write into the run by one.
    """

    def __init__(self, run: RunFolder, shared: Sequence[str], places: Mapping[str, Path], rest: Path) -> None:
        super().__init__(run.root)
        self._shared, self._places, self._rest = {"ledger", *shared}, places, rest

    def path(self, *parts: str) -> Path:
        """As RunFolder's."""
        if parts and parts[0] in self._shared:
            return super().path(*parts)
        return RunFolder(self._places.get(parts[0], self._rest) if parts else self._rest).path(*parts)


@dataclasses.dataclass(frozen=True)
class View(CurationRun):
    """What a stage is given to decide anew: it reads and writes as in any run.

    `before` is the run as it is; `anew` are the stages decided anew, the first of them being where the two part.
    """

    before: CurationRun
    anew: tuple[str, ...]

    @classmethod
    def of(cls, run: CurationRun, config: CurationConfig, places: Mapping[str, Path], rest: Path) -> View:
        """`places`: the stages decided anew, in their order, with their folders."""
        shared = [name for name in config.stages.root if name not in places]
        return cls(Overlay(run.folder, shared, places, rest), config, run.seed, run, tuple(places))

    def survivors(self, stage: str, shard: str) -> pa.Array:
        """Keys that get to `stage`: a stage not decided anew lets pass what it kept when it ran.

        What it never saw stops there, whether it judges or only measures.
        """
        names = list(self.config.stages.root)
        place = names.index(stage)
        if place <= names.index(self.anew[0]):
            return super().survivors(stage, shard)
        last = names[place - 1]
        if not self.sidecar_path(last, shard).exists():  # cluster and export say nothing of single samples
            return self.survivors(last, shard)
        table = self.sidecar(last, shard, ["key", "keep"])
        kept = table.filter(table["keep"])["key"].combine_chunks()
        if last in self.anew:
            return kept
        arrived = self.survivors(last, shard)
        return arrived.filter(pc.is_in(arrived, value_set=kept))

    def gather(self, stage: str, shard: str, wanted: Mapping[str, Sequence[str]]) -> pa.Table:
        """As in a run, without samples that lack a measurement which is taken of kept samples alone.

        Filter takes hashes so: a sample that only now passes has none.
        """
        table = super().gather(stage, shard, wanted)
        for source in set(wanted) & set(self.anew):
            for column in wanted[source]:
                if table[column].null_count and self._always_filled(source, shard, column):
                    table = table.filter(pc.is_valid(table[column]))
        return table

    def _always_filled(self, stage: str, shard: str, column: str) -> bool:
        stored = self.before.sidecar(stage, shard, ["keep", column])
        return stored.filter(stored["keep"])[column].null_count == 0
