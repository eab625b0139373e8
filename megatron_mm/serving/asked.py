"""Bodies of requests, as platform.openai.com/docs/api-reference has them. Loads no torch.

Fields that would change the answer and that we do not have are refused, never ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from .limits import Limits, Refused

T = TypeVar("T", bound="Asked")
Stop = Annotated[str, Field(min_length=1)]
Id = Annotated[int, Field(strict=True)]
MOST_TOP = 20  # likeliest tokens beside one
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # half a pair, or a whole one


class StreamOptions(BaseModel):
    """Whether a last event tells the usage."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """Free text is all there is."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class Asked(BaseModel):
    """What chat and completions share. The server's defaults are OpenAI's: it samples, at temperature 1."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    presence_penalty: float = Field(0.0, ge=0, le=0)
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None  # these three say nothing about the answer
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer and are no part of it."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_wanted(self) -> bool:
        """At the end of a stream."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatAsked(Asked):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_TOP)
    response_format: ResponseFormat | None = None

    def new_tokens(self, limits: Limits) -> int:
        """At most how many; raises Refused."""
        given = [most for most in (self.max_tokens, self.max_completion_tokens) if most is not None]
        return allowed(min(given, default=limits.new_tokens), limits)


class CompletionAsked(Asked):
    """POST /v1/completions. `logprobs` is the number of likeliest tokens told beside each one."""

    prompt: str | list[Id] | list[str] | list[list[Id]]
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    best_of: Literal[1] = 1
    suffix: None = None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One text or list of token ids for each choice."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


def allowed(new_tokens: int, limits: Limits) -> int:
    """The same number; raises Refused when it is more than the server gives."""
    if new_tokens > limits.new_tokens:
        raise Refused(
            400, f"max_tokens {new_tokens} is more than this server's {limits.new_tokens}", param="max_tokens"
        )
    return new_tokens


def parsed(schema: type[T], body: bytes, model: str) -> T:
    """A request for the model of that name; raises Refused, naming the field, for anything else."""
    try:
        asked = schema.model_validate(_json(body))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        said = "this server has no such field" if first["type"] == "extra_forbidden" else first["msg"]
        raise Refused(400, f"{param or 'body'}: {said}", param=param) from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if asked.model != model:
        raise Refused(
            404, f"no model '{asked.model[:200]}' here; it is '{model}'", code="model_not_found", param="model"
        )
    return asked


def _json(body: bytes) -> Any:
    """What the body says; raises ValueError for no JSON, and for half a surrogate pair, which no text can hold."""
    said = json.loads(body)
    if SURROGATE.search(body):
        json.dumps(said, ensure_ascii=False).encode()
    return said
