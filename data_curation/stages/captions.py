"""Check captions: drop what repeats itself, breaks off, declines, is too short or long, or in another language.

EVE (3.2) and EVEv2 (3.3) drop "repetitive text or incomplete sentences" and define neither; the rules' sources are
named where they stand (../recaption/rules.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import field_validator

from megavlm.platform.config import points
from megavlm.platform.errors import ConfigError

from ..recaption.rules import CAPTION_RULES, DEFAULT_RULES, first_broken
from ..recaption.source import RECAPTION, caption_source
from ..recaption.words import Caption
from .base import ShardStage
from .sidecar import judging_schema

if TYPE_CHECKING:
    from ..run import CurationRun

SCHEMA = judging_schema(
    source=pa.string(),  # the stage whose caption was checked
    words=pa.int32(),
)


class CheckCaptions(ShardStage):
    """Rules are tried in the order given; the first one that a caption breaks is its reason."""

    needs: ClassVar[tuple[str, ...]] = ("ingest",)
    from_sidecars: ClassVar[bool] = True

    source: Literal["auto", "recaption", "ingest"] = "auto"  # auto: the new captions where the recipe makes any
    rules: points(CAPTION_RULES) = DEFAULT_RULES  # type: ignore[valid-type]

    @field_validator("rules")
    @classmethod
    def _some(cls, rules: list[Any]) -> list[Any]:
        if not rules:
            raise ConfigError("no rules to check captions by", where="rules", fix=f"known: {', '.join(CAPTION_RULES)}")
        return rules

    def judge(self, run: CurationRun) -> Callable[[str], tuple[pa.Table, dict[str, Any]]]:
        """Reads sidecars only. Raises ConfigError when there are no new captions to check."""
        latest = caption_source(run, self.name)
        source = latest if self.source == "auto" else self.source
        if source == RECAPTION != latest:
            fix = "put recaption before check_captions, or set source: ingest"
            raise ConfigError("there are no new captions to check", where=f"curation.stages.{self.name}", fix=fix)
        columns = ["caption", *(["finish_reason"] if source == RECAPTION else [])]

        def judge(name: str) -> tuple[pa.Table, dict[str, Any]]:
            received = run.gather(self.name, name, {source: columns}).to_pylist()
            return pa.Table.from_pylist([self._row(row, source) for row in received], schema=SCHEMA), {}

        return judge

    def _row(self, told: dict[str, Any], source: str) -> dict[str, Any]:
        caption = Caption(told["caption"], told.get("finish_reason"))
        reason, detail = first_broken(self.rules, caption) or (None, None)
        row = {"key": told["key"], "source": source, "words": len(caption.words)}
        return row | {"keep": reason is None, "reason": reason, "detail": detail}
