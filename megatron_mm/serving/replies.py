"""Bodies of answers, as platform.openai.com/docs/api-reference has them. Loads no torch."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..inference.likely import Likely
    from .engine import Piece

Show = Callable[[list[int]], str]  # the text of token ids, special tokens written out
Json = dict[str, Any]


@dataclass
class Told:
    """One choice of an answer: its pieces so far."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish(self) -> str | None:
        """Why it ended, when it did."""
        return self.pieces[-1].finish if self.pieces else None

    @property
    def likely(self) -> list[Likely]:
        """Its tokens."""
        return [piece.likely for piece in self.pieces]


class Envelope:
    """What all bodies of one answer begin with."""

    def __init__(self, kind: Literal["chat.completion", "text_completion"], model: str) -> None:
        self.id = f"{'chatcmpl' if kind.startswith('chat') else 'cmpl'}-{uuid.uuid4().hex}"
        self._kind, self._model, self._created = kind, model, int(time.time())

    def whole(self, choices: Sequence[Json], usage: Json) -> Json:
        """The one body of an answer that is not streamed."""
        return self._body(self._kind, choices) | {"usage": usage}

    def chunk(self, choices: Sequence[Json], usage: Json | None = None) -> Json:
        """One of a stream's."""
        kind = "chat.completion.chunk" if self._kind == "chat.completion" else self._kind
        return self._body(kind, choices) | ({} if usage is None else {"usage": usage})

    def _body(self, kind: str, choices: Sequence[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": list(choices),
        }


def usage(prompt: int, completion: int) -> Json:
    """Tokens; an image's count to the prompt, the token that ends an answer to the completion."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chat_logprobs(likely: Iterable[Likely], show: Show) -> Json:
    """`choices[].logprobs` of a chat completion."""

    def one(token: int, logprob: float) -> Json:
        text = show([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            one(each.token, each.logprob) | {"top_logprobs": [one(*pair) for pair in each.top]} for each in likely
        ]
    }


def text_logprobs(first: Sequence[int], likely: Sequence[Likely], show: Show, at: int = 0) -> Json:
    """`choices[].logprobs` of a completion: `first` are tokens that nothing is known of, as an echo's first one.

    Offsets count the characters of the tokens shown one by one, from `at`. Of tokens that are shown alike, bytes of
    characters for one, the likeliest stands for all.
    """
    tokens = [show([token]) for token in [*first, *(each.token for each in likely)]]
    tops: list[Json | None] = [None] * len(first)
    for each in likely:
        best: Json = {}
        for token, logprob in each.top:
            best.setdefault(show([token]), logprob)
        tops.append(best)
    return {
        "tokens": tokens,
        "token_logprobs": [*(None for _ in first), *(each.logprob for each in likely)],
        "top_logprobs": tops,
        "text_offset": list(itertools.accumulate(map(len, tokens[:-1]), initial=at)) if tokens else [],
    }
