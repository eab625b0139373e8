"""One shard's captions: those in the cache, and those that have to be asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megavlm.platform.errors import InputError
from megavlm.platform.images import BadImage

from ..source import Shard, image_bytes, read_samples
from .cache import ResponseCache, address
from .picture import picture
from .prompt import Prompt
from .reply import Answer, Captioner, Failure, Question, Reply

if TYPE_CHECKING:
    from ..stages.recaption import Recaption

Row = dict[str, Any]


class Page:
    """The work on one shard."""

    def __init__(self, stage: Recaption, prompt: Prompt, captioner: Captioner, cache: ResponseCache) -> None:
        self.stage, self.prompt, self.captioner, self.cache = stage, prompt, captioner, cache
        self.addresses: dict[str, str] = {}  # sample key -> cache key
        self.answers: dict[str, Answer] = {}  # cache key -> what came of it

    def fill(self, shard: Shard, samples: list[Row]) -> tuple[list[Row], dict[str, Any]]:
        """The sidecar's rows, in the order of `samples` (rows with key, caption and metadata), and what to note.

        Raises what the captioner raises, and InputError when the shard lacks a sample.
        """
        self.cache.refresh()
        questions = self._questions(shard, {row["key"]: row for row in samples})
        asked = self.captioner.answers(questions, lambda question, reply: self.cache.put(question.key, reply))
        notes = {"asked": len(asked), "known": len(self.answers), "requests": sum(a.attempts for a in asked.values())}
        self.answers |= asked
        if lost := [row["key"] for row in samples if row["key"] not in self.addresses]:
            what = f"shard {shard.name} lacks {len(lost)} samples, '{lost[0]}' among them"
            raise InputError(what, fix="the raw shard changed during the run; run again")
        return [self._row(row["key"]) for row in samples], notes

    def _questions(self, shard: Shard, told: dict[str, Row]) -> Iterator[Question]:
        """Those that nobody has answered. Two samples that are alike are one question."""
        asked: set[str] = set()
        for sample in read_samples(shard, told):
            data, row = image_bytes(sample), told[sample.key]
            text = self.prompt.fill(row["caption"], row["metadata"])
            key = self.addresses[sample.key] = self._address(data, text)
            if key in asked or key in self.answers:
                continue
            if (reply := self.cache.get(key)) is not None:
                self.answers[key] = reply
                continue
            try:
                question = Question(key, *picture(data, self.stage.max_side), text)
            except BadImage as error:
                self.answers[key] = Failure(error.what)
                continue
            asked.add(key)
            yield question

    def _address(self, image: bytes, text: str) -> str:
        stage = self.stage
        decisive = {"model": stage.model, "text": text, "parameters": stage.parameters, "max_side": stage.max_side}
        return address(image, **decisive, **self.captioner.identity())

    def _row(self, key: str) -> Row:
        answer, stage = self.answers[self.addresses[key]], self.stage
        row: Row = {"key": key, "attempts": answer.attempts, "model": stage.model, "prompt": stage.prompt}
        row |= {"prompt_sha256": self.prompt.sha256, "parameters": json.dumps(stage.parameters, sort_keys=True)}
        if isinstance(answer, Reply):
            return row | {"keep": True, "caption": answer.text, "finish_reason": answer.finish}
        return row | {"keep": False, "reason": "recaption_failed", "detail": answer.detail}
