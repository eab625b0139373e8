"""A Hugging Face folder's words: its tokenizer.json, and its own chat template. No code of the folder is run."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.errors import ConfigError, InputError

from ...data.samples import IMAGE_MARK, Message
from ...data.tokenizer import TextTokenizer
from .words import begins, check_marks, ends


class FolderWords:
    """Text <-> token ids; raises ConfigError, naming what is missing, for a folder without them."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            fix = "give a folder with tokenizer.json, as transformers' fast tokenizers save it"
            raise ConfigError(f"no tokenizer in {folder}", where=str(path), fix=fix)
        self.folder, self.tokenizer = folder, TextTokenizer(path)
        self.start = begins(self.tokenizer)
        self.prefix = self.start[-1] if self.start else self.tokenizer.padding
        self.ends = ends(self.tokenizer) | self._end_named(folder / "tokenizer_config.json")
        added = (token["content"] for token in json.loads(path.read_bytes()).get("added_tokens", []))
        self._special = [token for token in added if token != IMAGE_MARK]  # marks are counted

    @functools.cached_property
    def theirs(self) -> Any:
        """transformers' tokenizer of the folder, which knows the chat template."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True, trust_remote_code=False)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """See `Engine`: the template of the folder, tokenised in one piece as transformers does."""
        check_marks(messages, 0)
        return self.theirs(self.written(self.theirs, messages), add_special_tokens=False)["input_ids"]

    def _end_named(self, path: Path) -> frozenset[int]:
        """The token that the tokenizer's configuration calls the end."""
        named = json.loads(path.read_bytes()).get("eos_token") if path.is_file() else None
        token = named["content"] if isinstance(named, dict) else named
        return frozenset({self.tokenizer.id_of(token)} if token else ())

    def written(self, writer: Any, messages: Sequence[Message], in_parts: bool = False) -> str:
        """The conversation as `writer` writes it: a tokenizer, or a processor, which takes contents `in_parts`.

        Raises InputError for a text that spells a special token: in one piece it would be one, and close a turn.
        """
        for message in messages:
            spelt = next((token for token in self._special if token in message["content"]), None)
            if spelt is not None:
                raise InputError(f"a turn spells the special token {spelt}", fix="ask without it")
        if getattr(writer, "chat_template", None) is None:
            raise ConfigError(
                f"{self.folder} has no chat template", fix="save one beside the tokenizer, or ask without a template"
            )
        goes_on = messages[-1]["role"] == "assistant"
        options = {"continue_final_message": True} if goes_on else {"add_generation_prompt": True}
        told = with_parts(messages) if in_parts else list(messages)
        return writer.apply_chat_template(told, tokenize=False, **options)


def with_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages whose contents are parts, text and images in order, as vision-language processors take them."""
    return [{"role": each["role"], "content": _parts(each)} for each in messages]


def _parts(message: Message) -> list[dict[str, str]]:
    texts = message["content"].split(IMAGE_MARK) if message["role"] == "user" else [message["content"]]
    parts: list[dict[str, str]] = []
    for number, text in enumerate(texts):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts
