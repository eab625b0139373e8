"""What comes of a question."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Reply:
    """A text. `finish` is the server's finish_reason ("stop", "length" where max_tokens cut it), if it told one."""

    text: str
    finish: str | None
    attempts: int = 1  # requests that it took, this one included
    prompt_tokens: int | None = None  # of the last request, by the server's own count, if it told
    completion_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Failure:
    """No text, and why not."""

    detail: str
    attempts: int = 0


Answer = Reply | Failure
