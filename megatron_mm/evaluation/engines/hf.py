"""A Hugging Face folder as transformers runs it: text models, and vision-language models that transformers knows.

Weights are read from safetensors alone, nothing is downloaded, and no code of the folder is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor

from megavlm.kernels import torchvision
from megavlm.platform.errors import ConfigError, InputError, MegaVLMError
from megavlm.platform.images import decode

from ...data.samples import Message
from ...inference.generate import room
from .base import Ask, Unanswered
from .folder import FolderWords
from .generating import answers, padded
from .requests import Pair, Reading, Scored, in_order, judged, readings
from .softmax import judge
from .words import check_marks, whole

T = TypeVar("T")

LOCAL = {"local_files_only": True, "trust_remote_code": False}


class HuggingFaceEngine:
    """See `Engine`. `batch`: sequences side by side; questions with images are answered one by one.

    Raises ConfigError for a folder that transformers has no class for, or without safetensors or tokenizer.json.
    """

    name = "hf"

    def __init__(self, folder: str | Path, batch: int = 16) -> None:
        self._folder, self._batch = Path(folder), batch
        if not any(self._folder.glob("*.safetensors")):
            fix = "give a folder as transformers' save_pretrained or `megavlm convert export` writes it"
            raise ConfigError(f"no safetensors in {folder}", where=str(folder), fix=fix)
        self._words = FolderWords(self._folder)
        torchvision.load()  # transformers imports it
        self._model, self._processor = self._load()
        self.max_length = _positions(self._model.config, self._folder)
        self.start, self.prefix = self._words.start, self._words.prefix

    def encode(self, text: str) -> list[int]:
        """See `Engine`."""
        return self._words.tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """See `Engine`; in the folder's own template."""
        return self._words.encode_chat(messages)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Engine`."""
        return self._words.tokenizer.decode(list(ids))

    @torch.no_grad()
    def log_likelihoods(self, pairs: Sequence[Pair]) -> list[Scored]:
        """See `Engine`; raises InputError as `readings` does."""
        wanted = sorted(readings(pairs, self.max_length), key=lambda each: len(each.ids))
        found: dict[int, Scored] = {}
        for group in _batches(wanted, self._batch):
            found |= self._read(group)
        return in_order(len(pairs), found)

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        """See `Engine`."""
        found: dict[int, str] = {}
        texts: dict[int, list[int]] = {}
        for number, ask in enumerate(asks):
            try:
                if ask.images:
                    found[number] = self._look(ask)
                else:
                    texts[number] = self._ids(ask)
            except MegaVLMError as error:
                found[number] = Unanswered(error.what)
        for group in _batches(sorted(texts, key=lambda number: len(texts[number])), self._batch):
            told = self._say([texts[number] for number in group], [asks[number] for number in group])
            found |= dict(zip(group, told, strict=True))
        return [found[number] for number in range(len(asks))]

    def close(self) -> None:
        """See `Engine`."""
        del self._model

    def _load(self) -> tuple[Any, Any]:
        """The model, on its device, and the processor of a vision-language model."""
        from transformers import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoProcessor,
        )

        try:
            config = AutoConfig.from_pretrained(str(self._folder), **LOCAL)
            sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
            kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
            model = kind.from_pretrained(str(self._folder), dtype="auto", use_safetensors=True, **LOCAL)
            processor = AutoProcessor.from_pretrained(str(self._folder), **LOCAL) if sees else None
        except (OSError, ValueError, KeyError) as error:
            fix = "choose --engine megatron, or a folder of a class that transformers has"
            raise ConfigError(f"transformers cannot read it: {error}", where=str(self._folder), fix=fix) from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cast(Any, model).to(device).eval(), processor

    def _read(self, group: Sequence[Reading]) -> dict[int, Scored]:
        inputs = padded([each.ids for each in group], self._words.tokenizer.padding, left=False)
        logits = self._model(**self._on(inputs)).logits
        found: dict[int, Scored] = {}
        for row, each in zip(logits, group, strict=True):
            places, tokens = torch.tensor(each.wanted(), device=row.device).T
            found |= judged(each, judge(row[places], tokens).tolist())
        return found

    def _say(self, prompts: Sequence[Sequence[int]], asks: Sequence[Ask]) -> list[str]:
        inputs = padded(prompts, self._words.tokenizer.padding, left=True)
        return self._answers(self._on(inputs), asks)

    def _look(self, ask: Ask) -> str:
        """A question with images, as the folder's processor shows them."""
        if self._processor is None:
            raise ConfigError(f"{self._folder} is a text model", fix="ask it without images")
        if ask.prompt is not None:
            raise InputError("images beside a raw text", fix="ask in messages")
        check_marks(ask.messages, len(ask.images))
        pictures = [Image.fromarray(decode(image)) for image in ask.images]
        text = self._words.written(self._processor, ask.messages, in_parts=True)
        inputs = self._processor(text=text, images=pictures, return_tensors="pt")
        return self._answers(self._on(inputs), [ask])[0]

    def _answers(self, inputs: dict[str, Tensor], asks: Sequence[Ask]) -> list[str]:
        lengths = inputs["attention_mask"].sum(1).tolist()
        for length in lengths:
            room(length, self.max_length)
        pairs = zip(asks, lengths, strict=True)
        asks = [replace(ask, max_new_tokens=min(ask.max_new_tokens, self.max_length - length)) for ask, length in pairs]
        told = self._model.generation_config.eos_token_id
        theirs = set(told) if isinstance(told, list) else set() if told is None else {told}
        return answers(self._model, inputs, asks, self.decode, self._words.ends | theirs, self._words.tokenizer.padding)

    def _ids(self, ask: Ask) -> list[int]:
        if ask.prompt is None:
            ids = self.encode_chat(ask.messages)
            room(len(ids), self.max_length)
            return ids
        return whole(self.start, self.encode(ask.prompt) or [self.prefix], self.max_length - ask.max_new_tokens)

    def _on(self, inputs: Any) -> dict[str, Tensor]:
        return {name: value.to(self._model.device) for name, value in inputs.items()}


def _positions(config: Any, folder: Path) -> int:
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(found, int):
        fix = "give its config.json max_position_embeddings"
        raise ConfigError("it does not say how many tokens it reads", where=str(folder), fix=fix)
    return found


def _batches(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
