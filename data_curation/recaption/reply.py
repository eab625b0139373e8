"""What is asked of a captioner, and what comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Question:
    """One image and the words that go with it. `key` is its address in the response cache."""

    key: str
    image: bytes  # encoded, as it is sent
    mime: str  # image/jpeg, image/png, image/webp
    text: str


@dataclasses.dataclass(frozen=True)
class Reply:
    """A caption. `finish` is the server's finish_reason ("stop", "length" where max_tokens cut it), if it told one."""

    text: str
    finish: str | None
    attempts: int = 1  # requests that it took, this one included


@dataclasses.dataclass(frozen=True)
class Failure:
    """No caption, and why not."""

    detail: str
    attempts: int = 0


Answer = Reply | Failure
Keep = Callable[[Question, Reply], None]


class Captioner(Protocol):
    """Answers questions. Made once per worker process, used for one shard after the other, then closed."""

    def answers(self, questions: Iterator[Question], keep: Keep) -> dict[str, Answer]:
        """Question key -> answer. `keep` is called with each reply as soon as it is there.

        Raises MegaVLMError when nobody is there to ask.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """What besides model, prompt and parameters decides a caption."""
        ...

    def close(self) -> None:
        """End what was started. Called once more, it does nothing."""
        ...
