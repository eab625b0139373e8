"""An engine as lmms-eval's model: its requests become `Ask`s in the protocol's words."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

from ...data.samples import Message
from ..benchmarks.protocols import Asked
from ..engines.base import Ask, Engine
from . import lmms_library

MARK = "<image>"


def ask(question: str, pictures: Sequence[Any], asked: Asked) -> Ask:
    """One question with its pictures (PIL images) before it, each on a line of its own, as all three papers ask."""
    plain = question.replace(MARK, "(image)")  # a benchmark's own text marks no place
    user: Message = {"role": "user", "content": f"{MARK}\n" * len(pictures) + plain}
    system: list[Message] = [{"role": "system", "content": asked.system}] if asked.system is not None else []
    return Ask((*system, user), tuple(map(_png, pictures)), max_new_tokens=asked.max_new_tokens)


def _png(picture: Any) -> bytes:
    target = io.BytesIO()
    picture.save(target, "PNG", compress_level=1)  # these bytes live for one question
    return target.getvalue()


@functools.cache
def _model_class() -> Any:
    """lmms-eval's model class over an engine. Made on use: the module loads torch."""
    base = lmms_library.load("api.model").lmms

    class EngineModel(base):  # type: ignore[misc, valid-type]
        """Greedy answers of an engine. Likelihoods and rounds are asked by none of the table's tasks."""

        def __init__(self, engine: Engine, asked: Asked) -> None:
            super().__init__()
            self.engine, self.asked = engine, asked

        def ask_of(self, request: Any) -> Ask:
            """What a request asks; raises what the task and Pillow raise for a row that cannot be shown."""
            question, _, pictures_of, number, task, split = request.args
            row = self.task_dict[task][split][number]
            return ask(question, pictures_of(row) or [], self.asked)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return self.engine.generate([self.ask_of(request) for request in requests])

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError("no benchmark of the table has rounds")

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError("no picture benchmark of the table asks for likelihoods")

    return EngineModel


def engine_model(engine: Engine, asked: Asked) -> Any:
    """lmms-eval's model over `engine`, asking in a protocol's words."""
    return _model_class()(engine, asked)
