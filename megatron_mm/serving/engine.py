"""The model's side of the server: a batch of work at a time, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..data.tokenizer import TextTokenizer
from ..inference.generate import Ask, Batch, batches
from ..inference.likely import Likely
from ..inference.score import score, text_pack
from ..model import VisionLanguageModel
from .crew import Crew
from .spelling import Spelling


@dataclass(frozen=True)
class Generation:
    """Go on from a prompt; `stops` are texts that end the answer."""

    ask: Ask
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scoring:
    """Token ids of a text, and how many of the likeliest tokens to tell beside each one."""

    ids: tuple[int, ...]
    top: int = 0


Work = Generation | Scoring


@dataclass(frozen=True)
class Piece:
    """What one more token adds to an answer; `finish` with the last one: "stop" or "length"."""

    text: str
    likely: Likely
    finish: str | None = None


Event = Piece | list[Likely]  # Likely of a Scoring: its tokens after the first
Tell = Callable[[int, Event], None]


class Engine:
    """Performs work in batches. Every rank performs the same; only rank 0's `tell` and `gone` are somebody's."""

    def __init__(self, model: VisionLanguageModel, tokenizer: TextTokenizer, crew: Crew, most: int) -> None:
        self._model, self._tokenizer, self._crew, self._most = model, tokenizer, crew, most

    def perform(self, works: Sequence[Work], tell: Tell, gone: Callable[[int], bool]) -> None:
        """Do all of `works`; tell(number, event) as they come, and give up those that nobody waits for any more."""
        scorings = [(number, work) for number, work in enumerate(works) if isinstance(work, Scoring)]
        for group in self._packs(scorings):
            self._score(group, tell)
        generations = [(number, work) for number, work in enumerate(works) if isinstance(work, Generation)]
        for rows in batches([work.ask for _, work in generations], self._most):
            self._generate([generations[row] for row in rows], tell, gone)

    def _packs(self, scorings: Sequence[tuple[int, Scoring]]) -> Iterator[list[tuple[int, Scoring]]]:
        """As many texts as one sequence of the decoder's positions holds, at least one."""
        most, used = self._model.spec.decoder.max_positions, 0
        group: list[tuple[int, Scoring]] = []
        for number, work in scorings:
            if group and used + len(work.ids) > most:
                yield group
                group, used = [], 0
            group.append((number, work))
            used += len(work.ids)
        if group:
            yield group

    def _score(self, group: Sequence[tuple[int, Scoring]], tell: Tell) -> None:
        pack = text_pack([work.ids for _, work in group], self._model)
        found = score(self._model, pack, top=max(work.top for _, work in group))
        for (number, work), likely in zip(group, found, strict=True):
            tell(number, [each.best(work.top) for each in likely])

    def _generate(self, works: Sequence[tuple[int, Generation]], tell: Tell, gone: Callable[[int], bool]) -> None:
        batch = Batch(self._model, [work.ask for _, work in works])
        answers = [_Answer(work, self._tokenizer) for _, work in works]
        while batch.open:
            for said in batch.step():
                tell(works[said.row][0], answers[said.row].piece(said.likely, said.last))
            left = self._crew.share([row for row in batch.open if gone(works[row][0])])
            batch.drop([*left, *(row for row in batch.open if answers[row].stopped)])


class _Answer:
    """One generation's text."""

    def __init__(self, work: Generation, tokenizer: TextTokenizer) -> None:
        self._stop, self._spelling = work.ask.stop, Spelling(tokenizer.decode, work.stops)

    @property
    def stopped(self) -> bool:
        """Whether a text that ends it turned up."""
        return self._spelling.stopped

    def piece(self, likely: Likely, last: bool) -> Piece:
        """What a token adds; the token that ends an answer adds no text."""
        ended = likely.token in self._stop
        text = "" if ended else self._spelling.add(likely.token)
        if last:
            text += self._spelling.end()
        finish = "stop" if ended or self.stopped else "length" if last else None
        return Piece(text, likely, finish)
