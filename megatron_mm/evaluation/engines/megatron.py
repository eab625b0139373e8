"""A stage's own model: rank 0 drives, all ranks compute, in any layout that inference has.

engine = MegatronEngine(model, spec)
drive(engine, lambda engine: evaluate(engine, ...))  # on every rank
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from megavlm.platform.errors import InputError, MegaVLMError

from ...data.build import StageData
from ...data.knapsack import best_fit
from ...data.samples import Message
from ...inference.generate import Ask as Prompted
from ...inference.generate import room
from ...inference.passing import check_layout_of
from ...inference.prompt import encode_prompt
from ...inference.score import text_pack
from ...model import VisionLanguageModel
from ...serving.engine import Engine as Answers
from ...serving.engine import Generation, Piece
from .base import Ask, Unanswered
from .crew import Alone, Crew
from .likelihood import likelihoods
from .requests import Pair, Reading, Scored, in_order, judged, readings
from .words import StageWords, check_marks, whole

T = TypeVar("T")
PACK = 8192  # tokens read at a time: our guess, for 2.4 GB of logits of 150,000 words in bfloat16


class MegatronEngine:
    """See `Engine`. All ranks of the model make one; rank 0 asks it, the others `follow`.

    `batch`: how many answers are generated side by side. Data-parallel replicas share what is asked. Raises
    ConfigError for a layout that cannot answer (context or sequence parallel, interleaved).
    """

    name = "megatron"

    def __init__(self, model: VisionLanguageModel, spec: StageData, batch: int = 16) -> None:
        check_layout_of(model)
        self._model, self._spec, self._words = model, spec, StageWords(spec)
        self._crew = Crew()
        self.first = self._crew.first  # whether this is the rank that asks
        self._answers = Answers(model, self._words.tokenizer, Alone(), batch)
        self.max_length = model.spec.decoder.max_positions
        self.start = self._words.start
        self.prefix = self.start[-1] if self.start else self._words.tokenizer.padding

    def encode(self, text: str) -> list[int]:
        """See `Engine`."""
        return self._words.tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """See `Engine`; in the stage's template."""
        return self._words.encode_chat(messages)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Engine`."""
        return self._words.tokenizer.decode(list(ids))

    def log_likelihoods(self, pairs: Sequence[Pair]) -> list[Scored]:
        """See `Engine`; raises InputError as `readings` does."""
        wanted = readings(pairs, self.max_length)
        self._crew.share(("read", wanted))
        return in_order(len(pairs), self._read(wanted))

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        """See `Engine`."""
        self._crew.share(("answer", list(asks)))
        found = self._answer(asks)
        return [found[number] for number in range(len(asks))]

    def follow(self) -> None:
        """The other ranks' part, until rank 0 closes the engine."""
        parts: dict[str, Callable[[Any], object]] = {"read": self._read, "answer": self._answer}
        while (call := self._crew.share(None)) is not None:
            part, given = call
            parts[part](given)

    def close(self) -> None:
        """Rank 0: let the others go."""
        self._crew.share(None)

    def _mine(self, all_of: Sequence[T]) -> Sequence[T]:
        return all_of[self._crew.replica :: self._crew.replicas]

    def _read(self, wanted: Sequence[Reading]) -> dict[int, Scored]:
        """All ranks together: packs of sequences, each replica its own."""
        lengths = [len(each.ids) for each in wanted]
        most = max([min(PACK, self.max_length), *lengths])
        found: dict[int, Scored] = {}
        for group in self._mine(best_fit(lengths, most)):
            found |= self._pack([wanted[number] for number in group])
        return self._crew.gather(found)

    def _pack(self, group: Sequence[Reading]) -> dict[int, Scored]:
        pack = text_pack([each.ids for each in group], self._model)
        starts = pack.cu_seqlens.tolist()
        asked = [each.wanted(start) for each, start in zip(group, starts, strict=False)]
        places, tokens = torch.tensor([pair for each in asked for pair in each]).T
        rows = iter(likelihoods(self._model, pack, places, tokens).tolist())
        return {number: score for each in group for number, score in judged(each, rows).items()}

    def _answer(self, asks: Sequence[Ask]) -> dict[int, str]:
        """All ranks together: batches of prompts of about one length, each replica its own."""
        found: dict[int, str] = {}
        works: dict[int, Generation] = {}
        for number in self._mine(range(len(asks))):
            try:
                works[number] = self._work(asks[number])
            except MegaVLMError as error:
                found[number] = Unanswered(error.what)
        numbers = sorted(works, key=lambda number: works[number].ask.prompt.length)
        texts = dict.fromkeys(range(len(numbers)), "")

        def tell(place: int, event: object) -> None:
            assert isinstance(event, Piece)
            texts[place] += event.text

        self._answers.perform([works[number] for number in numbers], tell, lambda place: False)
        return self._crew.gather(found | {number: texts[place] for place, number in enumerate(numbers)})

    def _work(self, ask: Ask) -> Generation:
        if ask.prompt is not None or ask.messages[-1]["role"] == "assistant":
            prompt = text_pack([self._ids(ask)], self._model)
        else:
            check_marks(ask.messages, len(ask.images))
            spec = self._spec
            prompt = encode_prompt(ask.messages, ask.images, self._words.tokenizer, spec.model, spec.data)
        room(prompt.length, self.max_length)
        return Generation(Prompted(prompt, self._words.ends, ask.max_new_tokens), ask.stop)

    def _ids(self, ask: Ask) -> list[int]:
        if ask.images:
            raise InputError("images beside a raw text, or an answer that is begun", fix="ask for the whole answer")
        if ask.prompt is None:
            return self.encode_chat(ask.messages)
        return whole(self.start, self.encode(ask.prompt) or [self.prefix], self.max_length - ask.max_new_tokens)


def drive(engine: MegatronEngine, work: Callable[[MegatronEngine], T]) -> T | None:
    """Every rank: rank 0 does `work` and returns what it gives, the others follow it."""
    if not engine.first:
        engine.follow()
        return None
    try:
        return work(engine)
    finally:
        engine.close()
