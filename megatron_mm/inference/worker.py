"""Answers what `megavlm generate` is asked: in the verb's own process, or on every rank that torchrun started."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megavlm.platform.errors import InputError, MegaVLMError
from megavlm.platform.processes import die_with
from megavlm.platform.progress import progress

from ..backend import shutdown
from ..checkpoints.listing import resolve
from ..data.build import StageData
from ..data.measure import template
from ..model import VisionLanguageModel
from .generate import Ask, Batch, batches, room
from .load import load_stage
from .prompt import encode_prompt, user_message
from .questions import Question, read_image
from .sampling import Sampling
from .verb import Request

Answer = dict[str, Any]


def answer(asked: Path, said: Path) -> None:
    """One rank's part: `asked` is a Request; rank 0 writes a line of JSON for each question to `said`, as they come."""
    request = Request.load(asked.read_text())
    try:
        source = resolve(request.weights.source, request.weights.stage)
        spec = StageData.of(source.recipe, source.stage)
        model = load_stage(source.run, source.recipe, source.stage, request.weights.parallel, source.checkpoint)
        desk = _Desk(spec, model)
        with open(said if dist.get_rank() == 0 else os.devnull, "w") as out:
            for group in progress(list(_groups(request)), label="answer", unit="batch"):
                out.writelines(json.dumps(line) + "\n" for line in desk.answers(group))
                out.flush()
    finally:
        shutdown()


def _groups(request: Request) -> Iterator[list[Question]]:
    """As many at a time as are answered side by side, so that no more images are in memory."""
    questions = iter(request.questions)
    while group := list(itertools.islice(questions, request.batch_size)):
        yield group


class _Desk:
    """A stage's model, and what turns questions into prompts and tokens into text."""

    def __init__(self, spec: StageData, model: VisionLanguageModel) -> None:
        self._spec, self._model, self._tokenizer = spec, model, spec.tokenizer()
        self._stop = frozenset({template(spec.model, self._tokenizer, spec.data.template).stop})

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """In order. A question that cannot be asked costs no other one."""
        asks: dict[int, Ask] = {}
        found: dict[int, Answer] = {}
        for number, question in enumerate(questions):
            try:
                asks[number] = self._ask(question)
            except MegaVLMError as error:
                where = f" ({error.where})" if error.where else ""
                found[number] = {"error": error.what + where, "fix": error.fix}
        numbers = list(asks)
        for group in batches(list(asks.values()), len(asks)):
            found |= self._say({numbers[place]: asks[numbers[place]] for place in group})
        return [{"id": question.id, **found[number]} for number, question in enumerate(questions)]

    def _ask(self, question: Question) -> Ask:
        if question.error is not None:
            raise InputError(question.error)
        images = [read_image(path) for path in question.images]
        message = user_message(question.prompt, len(images))
        prompt = encode_prompt([message], images, self._tokenizer, self._spec.model, self._spec.data)
        room(prompt.length, self._model.spec.decoder.max_positions)
        sampling = Sampling(question.temperature, question.top_p, question.seed)
        return Ask(prompt, self._stop, question.max_new_tokens, sampling)

    def _say(self, asks: dict[int, Ask]) -> dict[int, Answer]:
        """Generate; seconds are those of the whole batch."""
        started = time.monotonic()
        batch = Batch(self._model, list(asks.values()))
        said: list[list[int]] = [[] for _ in asks]
        while batch.open:
            for each in batch.step():
                said[each.row].append(each.token)
        seconds = round(time.monotonic() - started, 3)
        pairs = zip(asks.items(), said, strict=True)
        return {number: self._told(ask, tokens) | {"seconds": seconds} for (number, ask), tokens in pairs}

    def _told(self, ask: Ask, tokens: list[int]) -> Answer:
        return {
            "text": self._tokenizer.decode(tokens),
            "tokens": tokens,
            "finished": tokens[-1] in ask.stop,
            "prompt_tokens": ask.prompt.length,
            "tiles": len(ask.prompt.tiles),
        }


def main(asked: str, said: str) -> None:
    """What torchrun runs."""
    die_with(os.getppid())
    answer(Path(asked), Path(said))


if __name__ == "__main__":  # checkpoint loading may start processes that import the main module
    main(*sys.argv[1:])
