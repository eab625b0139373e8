"""A mixture of encoders (Eagle, Shi et al. 2024, arXiv 2408.15998): every expert looks at the whole tile."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, StringConstraints, TypeAdapter, field_validator, model_validator

from megavlm.platform.config import point
from megavlm.platform.errors import ConfigError, did_you_mean

from ..costs import Cost, Setting
from ..flops import Flops
from ..maps import MapShape
from . import ENCODERS
from .base import Encoder
from .expert import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from ..config import Parallel
    from ..contracts import BuildContext
    from .mixture_model import MixtureModel

Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]  # a module's name, and a part's


class Mixture(Encoder):
    """Experts by names of one's own, each of which sees the tile resized to its own `image_size`.

    Out come the maps of all, in the order of `use`, each with the expert's key in place of its name.

    `normalisation: shared` is how the released Eagle runs: one tensor, normalised with CLIP's mean and std, for all
    experts. That concerns SAM, EVA-02 and DINOv2, which were trained with ImageNet's. CLIP and ConvNeXt have CLIP's
    anyway, and Pix2Struct standardises each image. Under `own` each normalises as it was trained.
    """

    name: Literal["mixture"] = "mixture"
    image_size: PositiveInt = 1024  # side of a square tile, in pixels
    experts: Annotated[dict[Key, point(ENCODERS)], Field(min_length=1)]  # type: ignore[valid-type]
    use: list[str] | None = None  # which of them, in this order: that of channels and tokens. null: all, as written
    normalisation: Literal["own", "shared"] = "own"

    @field_validator("experts", mode="before")
    @classmethod
    def _each_in_its_place(cls, experts: Any) -> Any:
        if not isinstance(experts, Mapping):
            return experts
        return {key: encoder_at(f"experts.{key}", expert) for key, expert in experts.items()}

    @model_validator(mode="after")
    def _known(self) -> Mixture:
        if self.use is not None and (not self.use or len(set(self.use)) < len(self.use)):
            raise ConfigError(
                f"use {self.use} names no expert, or one twice", where="encoder.use", fix="name each expert once"
            )
        for key in self.use or []:
            if key not in self.experts:
                raise ConfigError(f"unknown expert '{key}'", where="encoder.use", fix=did_you_mean(key, self.experts))
        for key, expert in self.experts.items():
            _require_single(key, expert)
        return self

    @property
    def used(self) -> dict[str, Any]:
        """The experts that are built, in order, as `normalisation` has them."""
        change = {"mean": CLIP_MEAN, "std": CLIP_STD} if self.normalisation == "shared" else {}
        return {key: self.experts[key].model_copy(update=change) for key in self.use or self.experts}

    @property
    def maps(self) -> tuple[MapShape, ...]:
        """The feature maps of one tile, expert after expert."""
        return tuple(shape._replace(expert=key) for key, expert in self.used.items() for shape in expert.maps)

    @property
    def parts(self) -> Mapping[str, int]:
        """Expert -> its parameters."""
        return {key: expert.parameters() for key, expert in self.used.items()}

    def costs(self, setting: Setting) -> tuple[Cost, ...]:
        """Of one tile, expert after expert, beside what is resized for all of them; `Cost.part` says which."""
        used = self.used
        resized = 3.0 * 4 * sum(side**2 for side in {each.image_size for each in used.values()} - {self.image_size})
        return tuple(
            dataclasses.replace(cost, part=f"encoder.{key}", alone=cost.alone + resized)
            for key, expert in used.items()
            for cost in expert.costs(setting)
        )

    def parameters(self) -> int:
        """Parameters of the experts in use."""
        return sum(self.parts.values())

    def flops(self) -> Flops:
        """Forward FLOPs of one tile, resizing not counted."""
        return sum((expert.flops() for expert in self.used.values()), Flops())

    def check(self, parallel: Parallel) -> None:
        """Raise ConfigError where one of the experts cannot be split over `parallel`."""
        for key, expert in self.used.items():
            with standing_at(f"experts.{key}"):
                expert.check(parallel)

    def fp8_widths(self, parallel: Parallel) -> list[tuple[str, int, int]]:
        """The experts' linear layers that run in FP8."""
        return [
            (f"experts.{key}.{width}", size, split)
            for key, expert in self.used.items()
            for width, size, split in expert.fp8_widths(parallel)
        ]

    def build(self, ctx: BuildContext) -> MixtureModel:
        """The experts in use, weights not drawn."""
        from .mixture_model import MixtureModel

        return MixtureModel(self, ctx)


def encoder_at(place: str, value: Any) -> Any:
    """One encoder of several, written as any point; raises ConfigError that says at which `place` it stands."""
    with standing_at(place):
        return TypeAdapter(point(ENCODERS)).validate_python(value)


@contextmanager
def standing_at(place: str) -> Iterator[None]:
    """Where one encoder of several says `encoder.KEY` in a ConfigError, it says `encoder.PLACE.KEY`."""
    try:
        yield
    except ConfigError as error:
        what, where, fix = (_at(place, text) for text in (error.what, error.where, error.fix))
        raise ConfigError(what, where=where, fix=fix) from None


def _at(place: str, text: str | None) -> str:
    return re.sub(r"^encoder$|\bencoder(?=\.\w)", lambda _: f"encoder.{place}", text or "")


def _require_single(key: str, expert: Any) -> None:
    """An expert is one network with a normalisation of its own, and its key names a part without doubt."""
    if key == "experts":
        raise ConfigError("an expert cannot be called 'experts'", where="encoder.experts", fix="choose another key")
    if not {"image_size", "mean", "std"} <= set(type(expert).model_fields):
        raise ConfigError(
            f"'{expert.name}' is no expert: it is made of several encoders itself",
            where=f"encoder.experts.{key}.name",
            fix="name its encoders as experts of the mixture",
        )
