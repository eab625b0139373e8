"""The schemas of a training recipe: model axes, data sets, stages. Arithmetic only: importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RootModel,
    field_validator,
    model_validator,
)

from megavlm.platform.config import Config, merge, point, points
from megavlm.platform.errors import ConfigError, did_you_mean
from megavlm.platform.images import IMAGE_DECODERS

from .connectors import CONNECTORS
from .data.templates import TEMPLATES
from .decoders import DECODERS
from .encoders import ENCODERS
from .injection import INJECTIONS
from .objectives import OBJECTIVES
from .training.trackers import TRACKERS

AXES = ("encoder", "connector", "injection", "decoder")
Axis = Literal["encoder", "connector", "injection", "decoder"]


class Tiling(Config):
    """Dynamic high resolution (NVLM 3.2 / InternVL 1.5): an image becomes 1..max_tiles tiles, plus a thumbnail."""

    tile: PositiveInt = 448  # side of a square tile, in pixels; the encoder's input size
    min_tiles: PositiveInt = 1
    max_tiles: PositiveInt = 6  # without the thumbnail
    thumbnail: bool = True


class ModelConfig(Config):
    """One point in the space of the four axes, plus auxiliary objectives."""

    tiling: Tiling = Tiling()
    encoder: point(ENCODERS)  # type: ignore[valid-type]
    connector: point(CONNECTORS)  # type: ignore[valid-type]
    injection: point(INJECTIONS)  # type: ignore[valid-type]
    decoder: point(DECODERS)  # type: ignore[valid-type]
    objectives: points(OBJECTIVES) = Field(default=["next_token"])  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.encoder.image_size != self.tiling.tile:
            raise ConfigError(
                f"encoder.image_size {self.encoder.image_size} is not the tile's side {self.tiling.tile}",
                where="model.tiling.tile",
                fix=f"set model.tiling.tile={self.encoder.image_size}",
            )
        digits = len(str(self.tiling.max_tiles))
        if self.injection.tags == "1d" and digits > self.injection.tag_digits:
            raise ConfigError(
                f"up to {self.tiling.max_tiles} tiles, and tags of {self.injection.tag_digits} digit(s): those of one "
                "image would differ in length",
                where="model.injection.tag_digits",
                fix=f"set model.injection.tag_digits={digits}",
            )
        return self

    @field_validator("objectives")
    @classmethod
    def _one(cls, objectives: list[Config]) -> list[Config]:
        if len(objectives) != 1:
            raise ConfigError(
                f"{len(objectives)} objectives: training on several at once is not built yet",
                where="model.objectives",
                fix=f"name one of {', '.join(OBJECTIVES)}",
            )
        return objectives

    def changed(self, changes: Mapping[str, Any], where: str) -> ModelConfig:
        """This model with a stage's `changes` on top; raises ConfigError whose `where` begins with the given one."""
        return self if not changes else ModelConfig.parse(merge(self.model_dump(mode="json"), changes), where=where)

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens that one tile costs in the decoder, tags not counted."""
        return self.connector.tokens_per_tile(self.encoder.grid)

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by arithmetic: each axis, `auxiliary` (the objectives' own), `total`, and `exported`.

        Counted is what is built: an encoder's dummy heads are, a vocabulary's padding is not. An export holds the axes
        and not the objectives.
        """
        width = self.decoder.hidden
        axes = {
            "encoder": self.encoder.parameters(),
            "connector": self.connector.parameters(self.encoder.channels, width),
            "injection": self.injection.parameters(self.decoder),
            "decoder": self.decoder.parameters(),
        }
        exported, auxiliary = sum(axes.values()), sum(each.parameters(self.decoder) for each in self.objectives)
        return axes | {"auxiliary": auxiliary, "total": exported + auxiliary, "exported": exported}


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


class Parallel(Config):
    """megatron-core's axes. GPUs x nodes = tp x pp x cp x dp, dp being what is left."""

    tp: PositiveInt = 1
    pp: PositiveInt = 1
    cp: PositiveInt = 1
    vp: PositiveInt = 1  # parts of the decoder that each pipeline stage holds, interleaved
    first_stage_layers: PositiveInt | None = None  # decoder layers of the first and of the last pipeline stage, which
    last_stage_layers: PositiveInt | None = None  # also hold the embedding and the output layer; null: as the others
    sequence_parallel: bool = False
    overlap: bool | None = None  # gradients summed, weights gathered while it computes; null: where there are GPUs

    @property
    def split(self) -> int:
        """Processes that one copy of the model is split over."""
        return self.tp * self.pp * self.cp

    @model_validator(mode="after")
    def _consistent(self) -> Parallel:
        if self.sequence_parallel and self.tp == 1:
            raise ConfigError(
                "sequence_parallel needs tensor parallelism, and tp is 1",
                where="parallel.sequence_parallel",
                fix="set parallel.tp >= 2 or parallel.sequence_parallel=false",
            )
        if self.vp > 1 and self.pp == 1:
            raise ConfigError(
                f"vp {self.vp} interleaves pipeline stages, and pp is 1", where="parallel.vp", fix="set parallel.vp=1"
            )
        if self.pp == 1 and (self.first_stage_layers or self.last_stage_layers):
            raise ConfigError(
                "there is one pipeline stage, which holds all layers",
                where="parallel.first_stage_layers" if self.first_stage_layers else "parallel.last_stage_layers",
                fix="leave it out, or set parallel.pp",
            )
        return self


class Group(Config):
    """What differs for the parameters of one axis."""

    lr: float | None = None  # at its highest; min_lr keeps its share of it
    weight_decay: float | None = None


class Optimizer(Config):
    """AdamW with warm-up and decay to min_lr."""

    lr: float
    min_lr: float = 0.0
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    decay_steps: NonNegativeInt = 0  # wsd: the last so many steps go down to min_lr, all before stay at lr
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # global gradient norm
    groups: dict[Axis, Group] = {}  # axis -> what differs for it

    @model_validator(mode="after")
    def _decays(self) -> Optimizer:
        if (self.schedule == "wsd") != (self.decay_steps > 0):
            raise ConfigError(
                f"schedule {self.schedule} with decay_steps {self.decay_steps}",
                where="optimizer.decay_steps",
                fix="schedule: wsd needs decay_steps of 1 and more, the others none",
            )
        return self

    def of(self, axis: str | None) -> tuple[float, float, float]:
        """(lr, min_lr, weight_decay) of an axis' parameters."""
        own = self.groups.get(axis, Group()) if axis else Group()  # type: ignore[call-overload]
        lr = self.lr if own.lr is None else own.lr
        decay = self.weight_decay if own.weight_decay is None else own.weight_decay
        return lr, self.min_lr * (lr / self.lr if self.lr else 1.0), decay


class Loss(Config):
    """How the losses of a global batch's tokens become one number.

    global_token: every target counts alike, wherever it stands. per_microbatch: every packed sequence counts alike, as
    where each rank takes the mean of its micro-batch (with `pack: false`, every sample). sqrt_length: an answer of n
    tokens counts sqrt(n) (--use-loss-scaling of Megatron-LM's multimodal example, InternVL 2.5's square averaging).
    """

    normalisation: Literal["global_token", "per_microbatch", "sqrt_length"] = "global_token"


class Checkpoint(Config):
    """When a stage's state is written, and which checkpoints stay. One is also written at its end, and on request."""

    every: PositiveInt = 1000  # steps
    keep_last: PositiveInt = 1  # the newest so many stay
    keep_every: PositiveInt | None = None  # and, for good, those after each so many steps
    asynchronous: bool | None = None  # written while training goes on; null: where there are GPUs

    @model_validator(mode="after")
    def _written(self) -> Checkpoint:
        if self.keep_every is not None and self.keep_every % self.every:
            raise ConfigError(
                f"keep_every {self.keep_every} is no multiple of every {self.every}: most of those are never written",
                where="checkpoint.keep_every",
                fix=f"set checkpoint.keep_every={max(self.keep_every // self.every, 1) * self.every}",
            )
        return self


class Gate(Config):
    """The paired text gate: this stage's `suite` predictions against those of an earlier stage."""

    suite: str = "text"
    baseline: str  # stage whose predictions are the reference
    max_drop: float  # largest tolerated loss of accuracy, as a fraction
    confidence: float = 0.95


class Stage(Config):
    """One node of the recipe's DAG: what is trained, on what, for how long, in which layout."""

    after: list[str] = []  # stages whose weights this one starts from: the last listed wins where both hold a tensor
    start: str | None = None  # without those: a run or a checkpoint in one; axes that it does not hold are drawn
    model: dict[str, Any] = {}  # what differs from the recipe's model here: {tiling: {max_tiles: 1}}
    template: point(TEMPLATES) | None = None  # type: ignore[valid-type]  # in place of data.template
    train: list[Axis]  # all else is frozen
    mixture: Mixture
    steps: PositiveInt
    optimizer: Optimizer
    loss: Loss = Loss()
    parallel: Parallel = Parallel()
    # fp8: the linear layers of encoder and decoder, scaled from earlier steps, by tensor, or by blocks of 128
    precision: Literal["fp32", "bf16", "fp8", "fp8_tensorwise", "fp8_blockwise"] = "bf16"
    recompute: Literal["none", "selective", "full"] = "none"  # activations computed again in the backward pass
    deterministic: bool = False  # the same bits again from the same layout and machines, at the price of speed
    checkpoint: Checkpoint = Checkpoint()
    on_spike: Literal["warn", "stop"] = "warn"  # what a loss far above those before it does, beside an event
    evaluate: dict[str, str] = {}  # suite name -> set to evaluate on when the stage is done
    blind: list[str] = []  # suites of `evaluate` that are answered once more with the images exchanged
    gate: Gate | None = None
    optional: bool = False  # runs only when --stage names it: controls and ablations

    @model_validator(mode="after")
    def _starts_once(self) -> Stage:
        if self.after and self.start is not None:
            raise ConfigError(
                f"start {self.start}, and the weights are those of {', '.join(self.after)}",
                where="start",
                fix="leave out either start or after",
            )
        return self


class Run(Config):
    """What a run does beside training, and may do otherwise whenever it goes on."""

    trackers: points(TRACKERS) = []  # type: ignore[valid-type]  # where figures go besides metrics.jsonl


class Stages(RootModel[dict[str, Stage]]):
    """The stages in the order they are written, each after those it names."""

    @classmethod
    def parse(cls, data: object, where: str = "") -> Stages:
        """Validate every stage; raises ConfigError."""
        if not isinstance(data, dict):
            raise ConfigError("stages is a mapping NAME: stage", where=where)
        return cls({name: Stage.parse(stage, where=f"{where}.{name}") for name, stage in data.items()})

    @field_validator("root")
    @classmethod
    def _after_known(cls, stages: dict[str, Stage]) -> dict[str, Stage]:
        for index, (name, stage) in enumerate(stages.items()):
            earlier = list(stages)[:index]
            for wanted in [*stage.after, *([stage.gate.baseline] if stage.gate else [])]:
                if wanted not in earlier:
                    raise ConfigError(
                        f"stage '{name}' comes after '{wanted}', which is no earlier stage",
                        where=f"stages.{name}",
                        fix=did_you_mean(wanted, earlier),
                    )
        return stages

    def __getitem__(self, name: str) -> Stage:
        if name not in self.root:
            raise ConfigError(f"unknown stage '{name}'", where="stages", fix=did_you_mean(name, self.root))
        return self.root[name]
