"""Text refinement: every conversation's last answer written anew by a better model (NVLM 5.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from megavlm.platform.errors import ConfigError

from ...recaption.cache import ResponseCache
from ...recaption.endpoints import Asking, check_endpoint, silent
from ...recaption.pool import Remote
from ...recaption.reply import Answer, Failure
from ...stages.base import ShardStage
from ...stages.sidecar import judging_schema
from ..refine import EndpointWriter, Refiner
from .base import table_of
from .conversations import conversations

if TYPE_CHECKING:
    from ...run import CurationRun

SCHEMA = judging_schema(
    answer=pa.string(),
    finish_reason=pa.string(),
    attempts=pa.int16(),  # requests that were made for it
    model=pa.string(),
    parameters=pa.string(),  # JSON
)
OURS = {"model", "messages", "stream", "n", "tools"}  # parts of a request that parameters may not set


class TextRefine(ShardStage):
    """RUN/text_refine/SHARD.parquet: new last answers; the turns before them are sent along and stay as they are.

    NVLM refined its sets' answers with GPT-4o and GPT-4o-mini and says no more; that only the last one is asked for,
    and that the old one is not shown, is our guess. Dropped: `refine_failed` (no answer came), `answer_cut` (at
    max_tokens).
    """

    needs: ClassVar[tuple[str, ...]] = ("text_ingest",)

    model: str  # as the endpoint names it
    endpoints: tuple[str, ...] = Field(min_length=1)  # base URLs, such as http://host:8000/v1
    parameters: dict[str, Any] = {"max_tokens": 2048, "temperature": 0.0}  # sent along as they are
    asking: Asking = Asking()
    cache: str | None = None  # a folder that runs may share; null: RUN/cache/text_refine

    @field_validator("endpoints")
    @classmethod
    def _are_endpoints(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_endpoint, urls))

    @field_validator("parameters")
    @classmethod
    def _ours_are_ours(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(parameters.keys() & OURS):
            raise ConfigError(f"'{taken[0]}' is not for parameters to set", where="parameters", fix="leave it out")
        return parameters

    def lacks(self) -> str | None:
        """An endpoint that listens."""
        return silent(self.endpoints)

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Raises ConfigError when the endpoint refuses us, MegaVLMError when there is none."""
        places = [Remote(url) for url in self.endpoints]
        writer = EndpointWriter(places, self.model, self.parameters, self.asking.manners(), self.asking.secret())
        cache = ResponseCache(Path(self.cache) if self.cache else run.folder.path("cache", self.name))
        refiner = Refiner(writer, cache)

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            samples = [(row["key"], row["messages"]) for row in conversations(run, self.name, name)]
            answers, notes = refiner.answers(samples)
            return table_of((self._row(key, answers[key]) for key, _ in samples), SCHEMA), notes

        return judge

    def _row(self, key: str, answer: Answer) -> dict[str, Any]:
        row = {"key": key, "attempts": answer.attempts, "model": self.model}
        row["parameters"] = json.dumps(self.parameters, sort_keys=True)
        if isinstance(answer, Failure):
            return row | {"keep": False, "reason": "refine_failed", "detail": answer.detail}
        row |= {"answer": answer.text, "finish_reason": answer.finish}
        if answer.finish == "length":
            return row | {"keep": False, "reason": "answer_cut", "detail": f"{len(answer.text)} characters"}
        return row | {"keep": True}
