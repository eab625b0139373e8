"""A recipe's section `data`, and what a stage draws of it. Loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from megavlm.platform.config import Config, point
from megavlm.platform.errors import ConfigError
from megavlm.platform.images import IMAGE_DECODERS

from ..data.templates import TEMPLATES


class DataConfig(Config):
    """What is shared by every stage's data: the tokenizer, the chat template, and named data sets."""

    tokenizer: str  # "mini" (shipped), or a folder that holds tokenizer.json
    template: point(TEMPLATES) = "chatml"  # type: ignore[valid-type]  # {name: chatml, system: "..."}
    decoder: point(IMAGE_DECODERS) = "exact"  # type: ignore[valid-type]  # of images in training; it changes no size
    sets: dict[str, str]  # name -> folder of shards; "{demo}" stands for the demo's data, made when missing


class Share(Config):
    """What a stage draws from one set."""

    weight: NonNegativeFloat | None = None  # relative number of samples; 0: nothing. Without any, the sizes decide
    epochs: PositiveFloat | None = None  # so many passes over the set, to the sample, and then no more of it
    cap: PositiveInt | None = None  # at most so many draws


class GlobalBatch(Config):
    """What one step learns from.

    packs: so many packed sequences. samples: exactly so many samples, in as many packs as they need. tokens: it closes
    with the sample that reaches so many.
    """

    unit: Literal["packs", "samples", "tokens"] = "packs"
    size: PositiveInt


class Mixture(Config):
    """What a stage draws from which named sets, in which order, and how that is packed.

    `order`: shuffled, or global batches of one modality each, their longest first (LLaVA's group_by_modality_length).
    """

    sets: dict[str, Share] = {}
    weights: dict[str, NonNegativeFloat] = {}  # in place of `sets`, where weights are all there is to say
    ratios: Literal["sizes", "required"] = "sizes"  # without weights or epochs: the sizes decide, or nobody, an error
    temperature: PositiveFloat = 1.0  # without weights, a set of n samples weighs n^(1/temperature)
    sequence_length: PositiveInt  # tokens of one packed sequence
    batch: GlobalBatch | None = None
    packs_per_batch: PositiveInt | None = None  # in place of `batch`, where the unit is packs
    order: Literal["shuffled", "group_by_modality_length"] = "shuffled"
    pack: bool = True  # false: one conversation in each packed sequence
    shuffle_window: PositiveInt = 16  # shards of a set whose samples are shuffled together, and read side by side

    @property
    def shares(self) -> dict[str, Share]:
        """The sets that something is drawn from."""
        given = self.sets or {name: Share(weight=weight) for name, weight in self.weights.items()}
        return {name: share for name, share in given.items() if share.weight != 0}

    @property
    def global_batch(self) -> GlobalBatch:
        """The size of a global batch, however it was given."""
        return self.batch or GlobalBatch(size=self.packs_per_batch or 1)

    @property
    def rows_per_batch(self) -> int | None:
        """Packed sequences in each global batch; None where that differs from batch to batch."""
        of = self.global_batch
        return of.size if of.unit == "packs" or (of.unit == "samples" and not self.pack) else None

    @property
    def undecided(self) -> list[str]:
        """The sets whose share is still to be said, where that is required."""
        if self.ratios == "sizes":
            return []
        return [name for name, share in self.shares.items() if share.weight is None and share.epochs is None]

    @model_validator(mode="after")
    def _said_once(self) -> Mixture:
        if (self.batch is None) == (self.packs_per_batch is None):
            raise ConfigError(
                "the global batch's size is said " + ("twice" if self.batch else "nowhere"),
                where="mixture.batch",
                fix="set either mixture.packs_per_batch=N or mixture.batch={unit: samples, size: N}",
            )
        if bool(self.sets) == bool(self.weights):
            raise ConfigError(
                "the mixture names its sets " + ("twice" if self.sets else "nowhere"),
                where="mixture.sets",
                fix="set either mixture.weights={NAME: 1} or mixture.sets={NAME: {weight: 1}}",
            )
        return self

    @model_validator(mode="after")
    def _comparable(self) -> Mixture:
        weighed = {name for name, share in self.shares.items() if share.weight is not None}
        if not self.shares:
            raise ConfigError("every set has the weight 0", where="mixture.sets", fix="give one of them a weight")
        if weighed and weighed != set(self.shares):
            raise ConfigError(
                f"weights are relative to each other, and of these sets only {', '.join(sorted(weighed))} has one",
                where="mixture.sets",
                fix="give each set a weight, or none",
            )
        return self
