"""A stage that asks a model one question about each sample: who is asked, and how."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import field_validator, model_validator

from megavlm.platform.errors import ConfigError
from megavlm.platform.progress import Progress, progress

from ..ledger import writer
from ..stages.base import Outcome, ShardStage, Worker
from ..stages.demand import Demand, Size
from ..stages.sidecar import judging_schema
from ..text.stages.base import table_of
from .ask import EndpointCaptioner
from .cache import ResponseCache
from .endpoints import Asking, check_endpoint, silent
from .page import Captioner, Page, Wanted
from .pool import Remote
from .reply import Answer
from .server import Server, stop_all

if TYPE_CHECKING:
    from ..run import CurationRun

OURS = ("model", "messages", "stream", "n", "tools")  # parts of a request that parameters may not set
COLUMNS = {
    "finish_reason": pa.string(),  # "stop", "length" where max_tokens cut the answer, or what else the server says
    "attempts": pa.int16(),  # requests that were made for it
    "model": pa.string(),
    "parameters": pa.string(),  # JSON
}


class Asked(ShardStage):
    """Exactly one of the `ways` is given. Replies go to a cache as they come, and from there into sidecars.

    Who is asked, how often and how many at a time decides nothing: what serves `model` is taken to say the same. So
    another endpoint, or a server of our own instead of one, does not do the stage anew, just as the cache takes no
    notice of it.
    """

    columns: ClassVar[dict[str, pa.DataType]]  # of the sidecar, beside the judgement and COLUMNS

    model: str  # as the server names it
    parameters: dict[str, Any] = {}  # sent along as they are
    endpoints: tuple[str, ...] = ()  # base URLs, such as http://host:8000/v1
    server: Server | None = None  # started by each worker
    asking: Asking = Asking()  # how endpoints and servers are asked
    cache: str | None = None  # a folder that runs may share; null: RUN/cache/STAGE

    def ways(self) -> dict[str, object]:
        """Who may be asked, by option."""
        return {"endpoints": self.endpoints, "server": self.server}

    def wanted(self, run: CurationRun) -> Callable[[str], Iterator[Wanted[Any]]]:
        """Check what is needed; return shard name -> each sample's question. What that raises costs the shard."""
        raise NotImplementedError

    def row(self, answer: Answer) -> dict[str, Any]:
        """The judgement, `finish_reason` and what `columns` names."""
        raise NotImplementedError

    @field_validator("endpoints")
    @classmethod
    def _are_endpoints(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_endpoint, urls))

    @field_validator("parameters")
    @classmethod
    def _ours_are_ours(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(parameters.keys() & set(OURS)):
            raise ConfigError(f"'{taken[0]}' is not for parameters to set", where="parameters", fix="leave it out")
        return parameters

    @model_validator(mode="after")
    def _one_way(self) -> Asked:
        ways = self.ways()
        given = [name for name, value in ways.items() if value]
        if len(given) != 1:
            what = f"told to ask {' and '.join(given) or 'nobody'}"
            raise ConfigError(what, fix=f"give exactly one of {', '.join(ways)}")
        return self

    def decisive(self) -> dict[str, Any]:
        """The model, what it is asked, and its parameters."""
        return self.model_dump(mode="json", exclude={"endpoints", "server", "asking", "cache"})

    def demand(self, size: Size) -> Demand:
        """As every ShardStage's; a worker has all its replicas' GPUs."""
        devices = max(1, self.server.gpus * self.server.replicas) if self.server else 1
        return dataclasses.replace(super().demand(size), devices=devices)

    def lacks(self) -> str | None:
        """Its server's command, or an endpoint that listens."""
        return self.server.lacks() if self.server else silent(self.endpoints)

    def captioner(self, run: CurationRun) -> Captioner:
        """Whoever answers; servers start when the first question is there."""
        secret = self.asking.secret()
        if self.server is None:
            places = [Remote(url) for url in self.endpoints]
            manners = self.asking.manners(len(places))
            return EndpointCaptioner(places, self.model, self.parameters, manners, secret)
        name = f"{self.name}-server-{writer()}"
        replicas = self.server.start(self.model, run.folder.current_attempt().logs, name)
        patience = self.server.start_seconds
        manners = self.asking.manners(
            len(replicas), health=self.server.health, patience_seconds=patience, proxies=False
        )
        return EndpointCaptioner(replicas, self.model, self.parameters, manners, secret, lambda: stop_all(replicas))

    @contextlib.contextmanager
    def at_work(self, run: CurationRun, tasks: Sequence[int]) -> Iterator[Worker]:
        """Shards are answered in the order of `tasks`; while one ends, the next is begun. Servers end with the work."""
        wanted, captioner = self.wanted(run), self.captioner(run)
        cache = ResponseCache(Path(self.cache) if self.cache else run.folder.path("cache", self.name))
        names = [run.shards[task].name for task in tasks]
        bar: Progress[None] = progress(label=self.name, unit="answer")
        with contextlib.closing(captioner), bar:
            pages = captioner.answer(Page(name, wanted(name), cache, bar.advance) for name in names)

            def work(task: int) -> Outcome:
                name = run.shards[task].name
                page = next(page for page in pages if page.name == name)
                table = self._table(run.survivors(self.name, name).to_pylist(), page.answers())
                run.write_sidecar(self.name, name, table)
                return Outcome.of(table, notes=page.notes())

            with contextlib.closing(pages):
                yield work

    def _table(self, keys: Sequence[str], answers: dict[str, Answer]) -> pa.Table:
        told = {"model": self.model, "parameters": json.dumps(self.parameters, sort_keys=True)}
        rows = ({"key": key, "attempts": answers[key].attempts} | told | self.row(answers[key]) for key in keys)
        return table_of(rows, judging_schema(**self.columns, **COLUMNS))
