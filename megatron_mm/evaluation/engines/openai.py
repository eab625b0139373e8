"""An OpenAI-compatible endpoint: `megavlm serve`, vLLM and others. Loads no torch.

Log-probabilities come from /completions, which echoes a prompt of token ids with them; that takes the model's own
tokenizer here. Answers come from /chat/completions, or /completions for raw text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from megavlm.platform.errors import ConfigError, InputError

from ...data.samples import Message
from .base import Ask, Unanswered
from .bodies import choices_of, content, rows_of, text_of
from .endpoint import Endpoint
from .folder import FolderWords
from .requests import Pair, Reading, Scored, in_order, judged, readings
from .words import check_marks, whole

T = TypeVar("T")
R = TypeVar("R")
STOPS = 4  # texts that end an answer, as many as OpenAI takes; the rest are cut off here
NO_TOKENIZER = "give the folder of the model's tokenizer.json with --tokenizer"


class EndpointEngine:
    """See `Engine`. `model`: its name there. `tokenizer`: the model's folder, which log-probabilities need.

    `max_length`: where the server's list of models does not say it. `at_once`: requests under way. Raises ConfigError
    for an endpoint that has no such model or does not say how long a text it reads.
    """

    name = "openai"

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str | None = None,
        tokenizer: str | Path | None = None,
        max_length: int | None = None,
        at_once: int = 8,
        seconds: float = 600.0,
    ) -> None:
        self._endpoint, self._model, self._at_once = Endpoint(url, key_variable, seconds), model, at_once
        self._words = FolderWords(Path(tokenizer)) if tokenizer is not None else None
        self.max_length = max_length or _length(self._endpoint, model)
        self._new = 0  # tokens to generate where none is wanted: some servers insist on one

    @property
    def start(self) -> tuple[int, ...]:
        """See `Engine`; raises ConfigError without a tokenizer."""
        return self._tokens.start

    @property
    def prefix(self) -> int:
        """See `Engine`; raises ConfigError without a tokenizer."""
        return self._tokens.prefix

    def encode(self, text: str) -> list[int]:
        """See `Engine`; raises ConfigError without a tokenizer."""
        return self._tokens.tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """See `Engine`; in the tokenizer folder's template, which must be the server's."""
        return self._tokens.encode_chat(messages)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Engine`; raises ConfigError without a tokenizer."""
        return self._tokens.tokenizer.decode(list(ids))

    def log_likelihoods(self, pairs: Sequence[Pair]) -> list[Scored]:
        """See `Engine`. Of a context that is too long two tokens less are read than by other engines."""
        most = self.max_length - 2  # what is predicted last is part of the prompt, and some servers add a token
        found: dict[int, Scored] = {}
        for each in self._at_the_same_time(self._read, readings(pairs, most)):
            found |= each
        return in_order(len(pairs), found)

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        """See `Engine`."""
        return self._at_the_same_time(self._answer, asks)

    def close(self) -> None:
        """See `Engine`."""
        self._endpoint.close()

    @property
    def _tokens(self) -> FolderWords:
        if self._words is None:
            raise ConfigError("an endpoint's log-probabilities need its tokenizer here", fix=NO_TOKENIZER)
        return self._words

    def _at_the_same_time(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(work, items))

    def _read(self, reading: Reading) -> dict[int, Scored]:
        """Each continuation is a prompt of its own: a server tells the tokens that are there, and the likeliest."""
        prompts = [[*reading.ids, tokens[-1]] for _, tokens in reading.asked]
        rows: list[tuple[float, float]] = []
        for (_, tokens), choice in zip(reading.asked, self._echoed(prompts), strict=True):
            rows += rows_of(choice, len(reading.ids) + 1, len(tokens))
        return judged(reading, rows)

    def _echoed(self, prompts: list[list[int]]) -> list[dict[str, Any]]:
        body = {"model": self._model, "prompt": prompts, "echo": True, "logprobs": 1, "temperature": 0}
        new = self._new  # of this request: others are under way
        try:
            told = self._endpoint.post("/completions", body | {"max_tokens": new})
        except InputError as error:
            if new:
                what = f"the endpoint gives no log-probabilities of a prompt: {error.what}"
                raise ConfigError(what, where=self._endpoint.url, fix="evaluate with --engine megatron or hf") from None
            self._new = 1
            return self._echoed(prompts)
        return choices_of(told, len(prompts))

    def _answer(self, ask: Ask) -> str:
        try:
            text = self._text(ask)
        except InputError as error:
            return Unanswered(error.what)
        places = [place for stop in ask.stop if (place := text.find(stop)) >= 0]
        return text[: min(places, default=len(text))]

    def _text(self, ask: Ask) -> str:
        raw = ask.prompt is not None
        path, body = ("/completions", self._raw(ask)) if raw else ("/chat/completions", self._chat(ask))
        return text_of(self._endpoint.post(path, body), raw)

    def _raw(self, ask: Ask) -> dict[str, Any]:
        if ask.images:
            raise InputError("images beside a raw text", fix="ask in messages")
        prompt: Any = ask.prompt
        if self._words is not None:
            ids = self.encode(prompt) or [self.prefix]
            prompt = whole(self.start, ids, self.max_length - ask.max_new_tokens)
        return {"prompt": prompt, **self._options(ask)}

    def _chat(self, ask: Ask) -> dict[str, Any]:
        check_marks(ask.messages, len(ask.images))
        if ask.messages[-1]["role"] == "assistant":
            raise InputError("an endpoint does not go on from an answer that is begun", fix="ask in another protocol")
        images = iter(ask.images)
        messages = [{"role": each["role"], "content": content(each, images)} for each in ask.messages]
        return {"messages": messages, **self._options(ask)}

    def _options(self, ask: Ask) -> dict[str, Any]:
        stops = {"stop": list(ask.stop[:STOPS])} if ask.stop else {}
        return {"model": self._model, "temperature": 0, "max_tokens": ask.max_new_tokens, **stops}


def _length(endpoint: Endpoint, model: str) -> int:
    """How many tokens the model reads, as vLLM and `megavlm serve` tell it."""
    listed = {each.get("id"): each for each in endpoint.get("/models").get("data", [])}
    if model not in listed:
        raise ConfigError(f"the endpoint has no model '{model}'", fix=f"it has: {', '.join(map(str, listed))}")
    found = listed[model].get("max_model_len")
    if not isinstance(found, int):
        raise ConfigError("the endpoint does not say how many tokens the model reads", fix="give --max-length")
    return found
