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
from megavlm.platform.errors import ConfigError, did_you_mean
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
    `text_share`: whatever the sizes and weights, this part of the draws comes from `text_sets`, and the rest from the
    others; weights, epochs and sizes then decide within each of the two. The draws end with the others.
    """

    sets: dict[str, Share] = {}
    weights: dict[str, NonNegativeFloat] = {}  # in place of `sets`, where weights are all there is to say
    text_sets: list[str] = []  # those of the sets that hold no image; without a text_share no draw changes
    text_share: float | None = None  # in [0, 1): the part of the draws that comes from text_sets; 0 leaves them out
    text_share_of: Literal["samples", "tokens"] = "samples"  # what the share is a part of
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
        left_out = self.text_sets if self.text_share == 0 else []
        return {name: share for name, share in self._given.items() if share.weight != 0 and name not in left_out}

    @property
    def sides(self) -> list[list[str]]:
        """The sets that share draws by weight or size: all of them, or with a text share [text, others]."""
        text = [name for name in self.shares if name in self.text_sets]
        others = [name for name in self.shares if name not in self.text_sets]
        return [text, others] if self.text_share else [[*self.shares]]

    @property
    def _given(self) -> dict[str, Share]:
        return self.sets or {name: Share(weight=weight) for name, weight in self.weights.items()}

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
        shared = self.sides if self.text_share is None else [side for side in self.sides if len(side) > 1]
        return [
            name
            for side in shared
            for name in side
            if self.shares[name].weight is None and self.shares[name].epochs is None
        ]

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
        if not self.shares:
            what = "every set has the weight 0" + (", or is text, and text_share is 0" if self.text_share == 0 else "")
            raise ConfigError(what, where="mixture.sets", fix="give one of them a weight")
        for side in self.sides:
            weighed = [name for name in side if self.shares[name].weight is not None]
            if weighed and weighed != side:
                raise ConfigError(
                    f"weights are relative to each other, and of these sets only {', '.join(sorted(weighed))} has one",
                    where="mixture.sets",
                    fix="give each set a weight, or none",
                )
        return self

    @model_validator(mode="after")
    def _share_possible(self) -> Mixture:
        share, where = self.text_share, "mixture.text_share"
        if share is None:
            return self
        if not 0 <= share < 1:
            fix = "set a fraction of all draws, 0 <= mixture.text_share < 1, as 0.25 for a quarter"
            raise ConfigError(f"text_share {share:g} is not in [0, 1)", where=where, fix=fix)
        if unknown := [name for name in self.text_sets if name not in self._given]:
            what = f"text_sets names '{unknown[0]}', and the mixture has no such set"
            raise ConfigError(what, where="mixture.text_sets", fix=did_you_mean(unknown[0], self._given))
        if not self.text_sets:
            fix = f"name them: mixture.text_sets=[NAME, ...], of {', '.join(self._given)}"
            raise ConfigError(f"text_share {share:g}, and no set is said to be text", where=where, fix=fix)
        for side, kind in zip(self.sides, ("of text_sets", "beside text_sets"), strict=False):
            if not side:
                fix = "leave text_share out, or name a set with a weight above 0"
                raise ConfigError(f"text_share {share:g}, and no set {kind} is drawn from", where=where, fix=fix)
        return self._text_unbounded()

    def _text_unbounded(self) -> Mixture:
        bounded = [n for n in self.text_sets if n in self.shares and (self.shares[n].epochs or self.shares[n].cap)]
        if bounded:
            raise ConfigError(
                f"text_share says how much is drawn of '{bounded[0]}', and its epochs or cap say it again",
                where=f"mixture.sets.{bounded[0]}",
                fix="leave out either text_share or the epochs and cap of the text sets",
            )
        return self
