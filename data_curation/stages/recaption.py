"""Recaption: a vision-language model describes every image anew (EVE 3.2; DenseFusion 3.2)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import PositiveInt, ValidationInfo, field_validator, model_validator

from megavlm.platform.errors import ConfigError

from ..ledger import writer
from ..recaption.ask import EndpointCaptioner
from ..recaption.cache import ResponseCache
from ..recaption.endpoints import Asking, check_endpoint, silent
from ..recaption.local import InProcess
from ..recaption.page import Page
from ..recaption.pool import Remote
from ..recaption.prompt import Prompt
from ..recaption.reply import Captioner
from ..recaption.server import Server, stop_all
from .base import Outcome, ShardStage, Worker
from .demand import Demand, Size
from .sidecar import judging_schema

if TYPE_CHECKING:
    from ..run import CurationRun

SCHEMA = judging_schema(
    caption=pa.string(),
    finish_reason=pa.string(),  # "stop", "length" where max_tokens cut the caption, or what else the server says
    attempts=pa.int16(),  # requests that were made for it
    model=pa.string(),
    prompt=pa.string(),
    prompt_sha256=pa.string(),
    parameters=pa.string(),  # JSON
)
OURS = ("model", "messages", "stream", "n", "tools")  # parts of a request that parameters may not set


class Recaption(ShardStage):
    """RUN/recaption/SHARD.parquet: the new captions. A sample without one is dropped as recaption_failed.

    Exactly one of `endpoints`, `server` and `transformers` says who is asked.
    """

    needs: ClassVar[tuple[str, ...]] = ("ingest",)

    model: str  # as the server names it; for `transformers` a folder, a hub id, or `random-weights`: nonsense
    prompt: str = "eve"  # a shipped one, or the path of a text file
    fields: tuple[str, ...] = ("tags",)  # of the samples' metadata, that the prompt may mention as $NAME
    parameters: dict[str, Any] = {"max_tokens": 512, "temperature": 0.0}  # sent along as they are
    max_side: PositiveInt = 2048  # pixels; larger images are reduced before they are sent
    prompt_sha256: str | None = None  # filled in when a run is made; a worker takes no other prompt
    endpoints: tuple[str, ...] = ()  # base URLs, such as http://host:8000/v1
    server: Server | None = None
    transformers: InProcess | None = None
    asking: Asking = Asking()  # how endpoints and servers are asked
    cache: str | None = None  # a folder that runs may share; null: RUN/cache/recaption

    @field_validator("prompt_sha256")
    @classmethod
    def _of_the_prompt(cls, told: str | None, info: ValidationInfo) -> str | None:
        # an option, so that an edited prompt counts as another one; not looked up again when a run is only looked at
        known = told is not None or not {"prompt", "fields"} <= info.data.keys()
        return told if known else Prompt.load(info.data["prompt"], info.data["fields"]).sha256

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
    def _one_way(self) -> Recaption:
        ways = {"endpoints": self.endpoints, "server": self.server, "transformers": self.transformers}
        given = [name for name, value in ways.items() if value]
        if len(given) != 1:
            what = f"recaption is told to ask {' and '.join(given) or 'nobody'}"
            raise ConfigError(what, fix="give exactly one of endpoints, server, transformers")
        return self

    def demand(self, size: Size) -> Demand:
        """As every ShardStage's; a worker has all its replicas' GPUs."""
        devices = max(1, self.server.gpus * self.server.replicas) if self.server else 1
        return dataclasses.replace(super().demand(size), devices=devices)

    def lacks(self) -> str | None:
        """Its server's command, an endpoint that listens, or the model."""
        if self.server:
            return self.server.lacks()
        return self.transformers.lacks(self.model) if self.transformers else silent(self.endpoints)

    @contextlib.contextmanager
    def at_work(self, run: CurationRun) -> Iterator[Worker]:
        """As every ShardStage's worker, and the servers that it started are ended with the work."""
        prompt = self._checked_prompt()
        captioner = self._captioner(run)
        cache = ResponseCache(Path(self.cache) if self.cache else run.folder.path("cache", "recaption"))
        shards = {shard.name: shard for shard in run.shards}

        def work(task: int) -> Outcome:
            shard = shards[run.shards[task].name]
            samples = run.gather(self.name, shard.name, {"ingest": ["caption", "metadata"]}).to_pylist()
            rows, notes = Page(self, prompt, captioner, cache).fill(shard, samples)
            table = pa.Table.from_pylist(rows, schema=SCHEMA)
            run.write_sidecar(self.name, shard.name, table)
            return Outcome.of(table, notes=notes)

        with contextlib.closing(captioner):
            yield work

    def _checked_prompt(self) -> Prompt:
        prompt = Prompt.load(self.prompt, self.fields)
        if prompt.sha256 != self.prompt_sha256:
            fix = "`megavlm curate run RECIPE` again does the stage anew with it"
            raise ConfigError(f"prompt '{self.prompt}' is not the one that this run was made with", fix=fix)
        return prompt

    def _captioner(self, run: CurationRun) -> Captioner:
        if self.transformers:
            return self.transformers.captioner(self.model, self.parameters, run.seed)
        secret = self.asking.secret()
        if self.server is None:
            places = [Remote(url) for url in self.endpoints]
            return EndpointCaptioner(places, self.model, self.parameters, self.asking.manners(), secret)
        name = f"recaption-server-{writer()}"
        replicas = self.server.start(self.model, run.folder.current_attempt().logs, name)
        manners = self.asking.manners(
            health=self.server.health, patience_seconds=self.server.start_seconds, proxies=False
        )
        return EndpointCaptioner(replicas, self.model, self.parameters, manners, secret, lambda: stop_all(replicas))
