"""Text refinement: every conversation's last answer written anew by a better model (NVLM 5.3)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from ...recaption.asked import Asked
from ...recaption.cache import address
from ...recaption.page import Wanted
from ...recaption.question import Conversation
from ...recaption.reply import Answer, Failure
from .conversations import conversations

if TYPE_CHECKING:
    from ...run import CurationRun


class TextRefine(Asked):
    """RUN/text_refine/SHARD.parquet: new last answers; the turns before them are sent along and stay as they are.

    NVLM refined its sets' answers with GPT-4o and GPT-4o-mini and says no more; that only the last one is asked for,
    and that the old one is not shown, is our guess. Dropped: `refine_failed` (no answer came), `answer_cut` (at
    max_tokens).
    """

    needs: ClassVar[tuple[str, ...]] = ("text_ingest",)
    columns: ClassVar[dict[str, pa.DataType]] = {"answer": pa.string()}

    parameters: dict[str, Any] = {"max_tokens": 2048, "temperature": 0.0}

    def wanted(self, run: CurationRun) -> Callable[[str], Iterator[Wanted[Conversation]]]:
        """A conversation without its last answer is a question."""

        def wanted(name: str) -> Iterator[Wanted[Conversation]]:
            for row in conversations(run, self.name, name):
                turns = row["messages"][:-1]
                place = address(b"", messages=turns, model=self.model, parameters=self.parameters)
                yield Wanted(row["key"], place, functools.partial(Conversation, place, turns))

        return wanted

    def row(self, answer: Answer) -> dict[str, Any]:
        """An answer that is whole, or why there is none."""
        if isinstance(answer, Failure):
            return {"keep": False, "reason": "refine_failed", "detail": answer.detail}
        row = {"answer": answer.text, "finish_reason": answer.finish}
        if answer.finish == "length":
            return row | {"keep": False, "reason": "answer_cut", "detail": f"{len(answer.text)} characters"}
        return row | {"keep": True}
