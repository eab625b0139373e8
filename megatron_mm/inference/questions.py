"""What `megavlm generate` is asked: one question of the command line, or a file of them. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, PositiveInt

from megavlm.platform.config import Config
from megavlm.platform.errors import InputError, MegaVLMError
from megavlm.platform.images import decode
from megavlm.platform.storage import safe_join


class Question(Config):
    """A user's turn, its images' paths, and how to answer; `error` says why it cannot be asked."""

    id: str | int | None = None
    prompt: str = ""
    images: tuple[str, ...] = ()
    max_new_tokens: PositiveInt = 64
    temperature: NonNegativeFloat = 0.0
    top_p: float = 1.0
    seed: int = 1
    error: str | None = None


def read_questions(path: Path, images: Path, defaults: Mapping[str, Any]) -> Iterator[Question]:
    """The questions of a JSONL file, one a line: {"prompt", "images", "id", "max_new_tokens", "seed", ...}.

    Image names are relative to the folder `images` and cannot leave it. `defaults` are for what a line does not say.
    A line that is no question becomes one with an `error`; raises InputError for a file that cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read the questions: {error.strerror}", where=str(path)) from None
    for number, line in enumerate(lines):
        if line.strip():
            yield _question(line, number, images, defaults)


def _question(line: bytes, number: int, images: Path, defaults: Mapping[str, Any]) -> Question:
    said: Any = None
    try:
        said = json.loads(line)
        if not isinstance(said, dict) or not isinstance(said.get("prompt"), str):
            raise InputError("no JSON object with a text `prompt`")
        named = {"id": number, **defaults, **said}
        question: Question = Question.parse(named)
        return question.model_copy(update={"images": tuple(str(safe_join(images, name)) for name in question.images)})
    except (ValueError, RecursionError, MegaVLMError) as error:
        name = said.get("id") if isinstance(said, dict) and isinstance(said.get("id"), str | int) else number
        what = error.what if isinstance(error, MegaVLMError) else str(error)
        return Question(id=name, error=f"line {number + 1}: {what}")


def read_image(path: str) -> bytes:
    """An image's bytes; raises InputError naming the file when it is missing or no image."""
    try:
        data = Path(path).read_bytes()
        decode(data)
    except OSError as error:
        raise InputError(f"cannot read the image: {error.strerror}", where=path) from None
    except InputError as error:
        raise InputError(error.what, where=path, fix=error.fix) from None
    return data
