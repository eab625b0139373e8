"""A captioner in this very process: any image-text-to-text model that transformers loads."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError, InputError, did_you_mean

from . import tiny
from .page import Page
from .question import AboutImage
from .reply import Reply

if TYPE_CHECKING:
    import torch

# The API's name of a parameter -> the name that transformers' generate() knows it by.
GENERATE = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}


class InProcess(Config):
    """How the model is run. It is `model` of the stage: a folder, or an id that is fetched from the hub.

    `random-weights` is a tiny model made on the spot, whose captions are nonsense.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: as the weights are stored
    batch_size: PositiveInt = 8

    def lacks(self, model: str) -> str | None:
        """What is not on this machine; nothing is fetched to find out."""
        from huggingface_hub import try_to_load_from_cache

        here = model == tiny.NAME or Path(model).is_dir()
        if here or isinstance(try_to_load_from_cache(model, "config.json"), str):
            return None
        return f"there is no model '{model}' here"

    def decisive(self) -> dict[str, Any]:
        """What moves words now and then. Batches move them as well, and servers batch as they like."""
        return {"dtype": self.dtype}

    def captioner(self, model: str, parameters: dict[str, Any], seed: int) -> LocalCaptioner:
        """Raises ConfigError for a parameter that generate() has no word for."""
        if unknown := sorted(parameters.keys() - GENERATE.keys()):
            what = f"'{unknown[0]}' means nothing to a model in this process"
            where = f"curation.stages.recaption.parameters.{unknown[0]}"
            raise ConfigError(what, where=where, fix=did_you_mean(unknown[0], GENERATE))
        return LocalCaptioner(self, model, parameters, seed)


class LocalCaptioner:
    """Loads the model when the first question is there."""

    def __init__(self, options: InProcess, model: str, parameters: dict[str, Any], seed: int) -> None:
        self.options, self.model, self.parameters, self.seed = options, model, parameters, seed
        self._loaded: tuple[Any, Any] | None = None

    def answer(self, pages: Iterator[Page[Any]]) -> Generator[Page[Any], None, None]:
        """See Captioner; every question gets a reply. A page fails with InputError when there is no such model."""
        for page in pages:
            try:
                while block := list(islice(iter(page.next, None), self.options.batch_size)):
                    for question, reply in zip(block, self._describe(block), strict=True):
                        page.put(question, reply)
            except Exception as error:
                page.fail(error)
            yield page

    def close(self) -> None:
        """Let go of the model."""
        self._loaded = None

    def _describe(self, block: list[AboutImage]) -> list[Reply]:
        import torch

        self._loaded = self._loaded or self._load()
        model, processor = self._loaded
        inputs = self._inputs(processor, block).to(model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode(), torch.random.fork_rng(enabled=samples(self.parameters)):
            if samples(self.parameters):
                torch.manual_seed(self.seed)
            out = model.generate(**inputs, **self._generation())
        made = out[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(made, skip_special_tokens=True)
        ended = self._ended(model, made)
        return [Reply(text.strip(), "stop" if end else "length") for text, end in zip(texts, ended, strict=True)]

    def _load(self) -> tuple[Any, Any]:
        from megavlm.kernels import torchvision

        torchvision.load()
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        cuda = self.options.device != "cpu" and torch.cuda.is_available()
        if self.model == tiny.NAME:
            small, processor = tiny.random_captioner()
            return small.to("cuda" if cuda else "cpu").eval(), processor
        try:
            processor = AutoProcessor.from_pretrained(self.model, padding_side="left")
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self.model, dtype=self.options.dtype, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            what = f"'{self.model}' is no model to load: {error}"
            raise InputError(what, where="curation.stages.recaption.model", fix="give a folder or an id") from None
        return model.to("cuda" if cuda else "cpu").eval(), processor

    def _inputs(self, processor: Any, block: list[AboutImage]) -> Any:
        from PIL import Image

        talks = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.open(io.BytesIO(question.image)).convert("RGB")},
                        {"type": "text", "text": question.text},
                    ],
                }
            ]
            for question in block
        ]
        return processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _generation(self) -> dict[str, Any]:
        """generate()'s arguments."""
        named = {GENERATE[name]: value for name, value in self.parameters.items()}
        if not samples(self.parameters):
            named.pop("temperature", None)
        return named | {"do_sample": samples(self.parameters)}

    def _ended(self, model: Any, made: torch.Tensor) -> list[bool]:
        """Per reply, whether the model ended it by itself."""
        import torch

        ends = torch.tensor(model.generation_config.eos_token_id, device=made.device).reshape(-1)
        return torch.isin(made, ends).any(dim=1).tolist()


def samples(parameters: dict[str, Any]) -> bool:
    """Whether words are drawn, by a seed; temperature 0 means the likeliest token each time, as servers take it."""
    return float(parameters.get("temperature", 0.0)) > 0
