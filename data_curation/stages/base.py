"""What a stage is: options (a Config), a number of tasks, and a worker that does one task and tells its outcome."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PrivateAttr

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError

from .demand import Demand, Size, Work

if TYPE_CHECKING:
    import pyarrow as pa

    from ..run import CurationRun


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a task tells the ledger: samples received, kept, dropped by reason, and whatever is worth a note."""

    received: int
    kept: int
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, *tables: pa.Table, notes: Mapping[str, Any] | None = None) -> Outcome:
        """Counts of sidecar tables, which hold one row per sample received with `keep` and `reason`."""
        kept = sum(sum(table["keep"].to_pylist()) for table in tables)
        reasons = Counter(reason for table in tables for reason in table["reason"].to_pylist() if reason)
        return cls(sum(map(len, tables)), kept, dict(sorted(reasons.items())), dict(notes or {}))

    @classmethod
    def total(cls, outcomes: Sequence[Outcome], notes: Mapping[str, Any] | None = None) -> Outcome:
        """The sum of several parts' counts, with notes of its own."""
        dropped: Counter[str] = Counter()
        for outcome in outcomes:
            dropped.update(outcome.dropped)
        received, kept = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("received", "kept"))
        return cls(received, kept, dict(sorted(dropped.items())), dict(notes or {}))


Worker = Callable[[int], Outcome]


class Stage(Config):
    """Base of every stage. A task writes its outputs whole (written beside, then renamed) before it returns.

    `needs` names the stages whose outputs it reads; `version` goes up when the same options give other results;
    `per_shard` says that task K is shard K, so that a changed shard redoes only itself; `judges` that its sidecars
    decide who goes on (otherwise everyone does); `exports` that it copies who went on, so that nobody judges after it;
    `large_tasks` that each task is worth a command of its own;
    `from_sidecars` that its decisions follow from what earlier stages wrote, so that `curate select` can ask what they
    would be under other options, except those named in `measures_by`, which decide what is measured.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    per_shard: ClassVar[bool] = True
    judges: ClassVar[bool] = True
    exports: ClassVar[bool] = False
    large_tasks: ClassVar[bool] = False
    from_sidecars: ClassVar[bool] = False
    measures_by: ClassVar[tuple[str, ...]] = ()
    _name: str = PrivateAttr(default="")

    @property
    def name(self) -> str:
        """The key under which the recipe lists this stage."""
        return self._name

    def register(self, name: str) -> None:
        """Tell the stage its key; done once, by the schema that read the recipe."""
        self._name = name

    def decisive(self) -> dict[str, Any]:
        """The options that decide what the stage writes, as JSON: those that only say who does the work left out."""
        return self.model_dump(mode="json")

    def demand(self, size: Size) -> Demand:
        """What it asks for at that size; by default its work grows with the images received (`curate pilot`)."""
        tasks = size.shards if self.per_shard else 1
        return Demand({"images": Work(size.images, tasks)}, rows=size.images / tasks)

    def piloted(self, share: float) -> dict[str, Any]:
        """Options that a run on that share of the source needs instead, to be to it what these are to the whole."""
        return {}

    def lacks(self) -> str | None:
        """What it would need to run on this machine and does not find; None when it can be tried."""
        return None

    def stand_in(self) -> dict[str, Any] | None:
        """Options with which a pilot that `lacks` something can try the stages after it; None: they can do without."""
        return None

    def tasks(self, run: CurationRun) -> int:
        """How many tasks; the earlier stages are complete when this is asked."""
        return len(run.plan.names) if self.per_shard else 1

    def rounds(self, run: CurationRun) -> Iterable[Sequence[int]]:
        """The tasks in rounds: the next one is asked for, and begins, when all tasks of this one are done.

        So a generator may look at what a round wrote before it names the next one.
        """
        yield range(self.tasks(run))

    def worker(self, run: CurationRun) -> Worker:
        """Load what all tasks share, once per process, and return the function that does task K."""
        raise NotImplementedError

    def again(self, run: CurationRun, before: CurationRun) -> Worker:
        """As `worker`, but deciding anew from measurements that were taken (`curate select`).

        `before` is the run as it is, to be read only; `run` the same under other options, whose outputs go elsewhere.
        The default is the stage's own worker; raises ConfigError where that would look at more than sidecars.
        """
        if not self.from_sidecars:
            what = f"what stage '{self.name}' would decide does not follow from sidecars"
            raise ConfigError(what, where=f"curation.stages.{self.name}", fix="`megavlm curate run` decides it")
        return self.worker(run)

    @contextlib.contextmanager
    def at_work(self, run: CurationRun, tasks: Sequence[int]) -> Iterator[Worker]:
        """The worker for `tasks`, in this order; a stage whose worker holds more than memory ends that here.

        Only such a stage, or one that does something for the next task meanwhile, defines it, instead of `worker`.
        """
        yield self.worker(run)

    def finish(self, run: CurationRun) -> None:
        """Called when every task is done: remove outputs that no task of this configuration wrote."""


class ShardStage(Stage):
    """A stage that judges each sample of a shard: it writes one sidecar per shard and nothing else decides."""

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Load what is shared; return shard name -> (sidecar with key, keep, reason, ..., notes)."""
        raise NotImplementedError

    def worker(self, run: CurationRun) -> Worker:
        """Judge shard K and write its sidecar."""
        judge = self.judge(run)

        def work(task: int) -> Outcome:
            table, notes = judge(run.shards[task].name)
            run.write_sidecar(self.name, run.shards[task].name, table)
            return Outcome.of(table, notes=notes)

        return work


class GlobalStage(Stage):
    """A stage that looks at all shards at once: one task, still one sidecar per shard."""

    per_shard: ClassVar[bool] = False

    def decide(self, run: CurationRun) -> tuple[dict[str, pa.Table], dict[str, Any]]:
        """Shard name -> sidecar, and notes."""
        raise NotImplementedError

    def worker(self, run: CurationRun) -> Worker:
        """Decide, then write every shard's sidecar."""

        def work(task: int) -> Outcome:
            tables, notes = self.decide(run)
            for shard, table in tables.items():
                run.write_sidecar(self.name, shard, table)
            return Outcome.of(*tables.values(), notes=notes)

        return work
