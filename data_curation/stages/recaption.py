"""Recaption: a vision-language model describes every image anew (EVE 3.2; DenseFusion 3.2)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import PositiveInt, ValidationInfo, field_validator

from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.images import BadImage

from ..recaption.asked import Asked
from ..recaption.cache import address
from ..recaption.local import InProcess, samples
from ..recaption.page import Captioner, Wanted
from ..recaption.picture import picture
from ..recaption.prompt import Prompt
from ..recaption.question import AboutImage
from ..recaption.reply import Answer, Failure
from ..source import image_bytes, read_samples

if TYPE_CHECKING:
    from ..run import CurationRun


class Recaption(Asked):
    """RUN/recaption/SHARD.parquet: the new captions. A sample without one is dropped as recaption_failed."""

    needs: ClassVar[tuple[str, ...]] = ("ingest",)
    columns: ClassVar[dict[str, pa.DataType]] = {
        "caption": pa.string(),
        "prompt": pa.string(),
        "prompt_sha256": pa.string(),
    }

    parameters: dict[str, Any] = {"max_tokens": 512, "temperature": 0.0}
    prompt: str = "eve"  # a shipped one, or the path of a text file
    fields: tuple[str, ...] = ("tags",)  # of the samples' metadata, that the prompt may mention as $NAME
    max_side: PositiveInt = 2048  # pixels; larger images are reduced before they are sent
    prompt_sha256: str | None = None  # filled in when a run is made; a worker takes no other prompt
    transformers: InProcess | None = None  # `model`, a folder or hub id, is run by the worker itself

    @field_validator("prompt_sha256")
    @classmethod
    def _of_the_prompt(cls, told: str | None, info: ValidationInfo) -> str | None:
        # an option, so that an edited prompt counts as another one; not looked up again when a run is only looked at
        known = told is not None or not {"prompt", "fields"} <= info.data.keys()
        return told if known else Prompt.load(info.data["prompt"], info.data["fields"]).sha256

    def ways(self) -> dict[str, object]:
        """One more."""
        return super().ways() | {"transformers": self.transformers}

    def decisive(self) -> dict[str, Any]:
        """A model in this process may round otherwise than one that is served."""
        return super().decisive() | {"transformers": self.transformers and self.transformers.decisive()}

    def lacks(self) -> str | None:
        """Or the model."""
        return self.transformers.lacks(self.model) if self.transformers else super().lacks()

    def captioner(self, run: CurationRun) -> Captioner:
        """The model itself, or as every stage's that asks."""
        if self.transformers is None:
            return super().captioner(run)
        return self.transformers.captioner(self.model, self.parameters, run.seed)

    def wanted(self, run: CurationRun) -> Callable[[str], Iterator[Wanted[AboutImage]]]:
        """Raises ConfigError when the prompt's file was edited since. A shard that lacks a sample fails."""
        prompt, shards = self._checked_prompt(), {shard.name: shard for shard in run.shards}
        model = {"model": self.model, "parameters": self.parameters, "max_side": self.max_side, **self._within(run)}

        def wanted(name: str) -> Iterator[Wanted[AboutImage]]:
            rows = run.gather(self.name, name, {"ingest": ["caption", "metadata"]}).to_pylist()
            told = {row["key"]: row for row in rows}
            for sample in read_samples(shards[name], list(told)):
                row, data = told.pop(sample.key), image_bytes(sample)
                text = prompt.fill(row["caption"], row["metadata"])
                place = address(data, text=text, **model)
                yield Wanted(sample.key, place, functools.partial(self._question, place, data, text))
            if told:
                what = f"shard {name} lacks {len(told)} samples, '{next(iter(told))}' among them"
                raise InputError(what, fix="the raw shard changed during the run; run again")

        return wanted

    def _within(self, run: CurationRun) -> dict[str, Any]:
        """What besides decides the words of a model in this process."""
        if self.transformers is None:
            return {}
        return self.transformers.decisive() | ({"seed": run.seed} if samples(self.parameters) else {})

    def _question(self, place: str, data: bytes, text: str) -> AboutImage | Failure:
        try:
            return AboutImage(place, *picture(data, self.max_side), text)
        except BadImage as error:
            return Failure(error.what)

    def row(self, answer: Answer) -> dict[str, Any]:
        """A caption, or why there is none."""
        row: dict[str, Any] = {"prompt": self.prompt, "prompt_sha256": self.prompt_sha256}
        if isinstance(answer, Failure):
            return row | {"keep": False, "reason": "recaption_failed", "detail": answer.detail}
        return row | {"keep": True, "caption": answer.text, "finish_reason": answer.finish}

    def _checked_prompt(self) -> Prompt:
        prompt = Prompt.load(self.prompt, self.fields)
        if prompt.sha256 != self.prompt_sha256:
            fix = "`megavlm curate run RECIPE` again does the stage anew with it"
            raise ConfigError(f"prompt '{self.prompt}' is not the one that this run was made with", fix=fix)
        return prompt
