"""What flows through the planner. Arithmetic: loads no torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from ..config import Parallel
from ..costs import Cost, MicroBatch
from ..data.amounts import Amounts

Recompute = Literal["none", "selective", "full", "every_other"]  # the last in published runs alone: timing.py
CONVENTION = "6 x (parameters - input embedding) a token and causal attention, less where frozen, over dense bf16 peak"

Attention = Literal["fused", "torch"]  # cuDNN's, as Transformer Engine has it; torch's own is FlashAttention-2


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU and what connects it. Rates are peaks from data sheets, per GPU and one direction; see gpus.yaml."""

    name: str
    memory: float  # bytes
    bf16: float  # dense FLOP/s
    fp8: float | None  # dense FLOP/s; None where it has none
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s to the others of its machine (NVLink)
    network: float  # bytes/s to other machines
    per_node: int = 8
    watts: float = 700.0  # power limit
    cores: float = 14.0  # of its machine's CPUs, for each GPU


NOTHING = Amounts(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Load:
    """What one step works through. packs: in the global batch. of: an average one. most: the heaviest, for memory.

    origin: where this is known from, in words ("packs of RUN", "assumed: every sample has an image of 7 tiles").
    amounts: sums over the global batch, for model FLOPs.
    """

    packs: int
    samples: int
    of: MicroBatch
    most: MicroBatch
    tokens: float  # in the global batch, before padding
    origin: str
    amounts: Amounts = NOTHING


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The model's parts in one micro-batch (tower: in one tile), each on one process of the tensor-parallel group."""

    tower: tuple[Cost, ...]  # encoder, block by block, then the connector; each one's `part` is named
    embedding: Cost
    layers: tuple[Cost, ...]  # with what the injection adds to them
    head: Cost  # last norm, output layer, loss
    teacher: tuple[Cost, ...] = ()  # of one tile, on every process
    added: tuple[Cost, ...] = ()  # that alone, layer by layer; none where it adds nothing
    objectives: Cost = Cost()  # what the objectives have of their own beside the decoder
    hidden: float = 0.0  # bytes that a pipeline stage sends the next, of one micro-batch on one process

    @cached_property
    def alike(self) -> tuple[tuple[tuple[Cost, Cost], ...], tuple[int, ...]]:
        """The layers that differ, each with what is added to it, and which of them each layer is."""
        every = list(zip(self.layers, self.added or (Cost(),) * len(self.layers), strict=True))
        kinds = {kind: place for place, kind in enumerate(dict.fromkeys(every))}
        return tuple(kinds), tuple(kinds[kind] for kind in every)

    @cached_property
    def tower_runs(self) -> tuple[tuple[Cost, int], ...]:
        """The tower's blocks with how many alike follow one another."""
        return tuple((cost, len(list(run))) for cost, run in itertools.groupby(self.tower))


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage as it is to run: everything that memory and time depend on. `world` GPUs, `dp` replicas.

    micro_batches: that a replica works through in a step. train: parts that learn. overlap: whether gradients are
    summed and weights gathered while it computes.
    """

    stage: str
    gpu: Gpu
    world: int
    parallel: Parallel
    dp: int
    micro_batches: int
    precision: str
    recompute: Recompute
    train: tuple[str, ...]
    load: Load
    pieces: Pieces
    overlap: bool = True
    fsdp: int = 1  # weights, gradients and optimizer sharded over so many; 1: megatron-core's distributed optimizer
    tp_overlap: bool = False  # tensor-parallel traffic hidden behind products
    attention: Attention = "fused"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one rank (of pipeline stage `stage`), by kind. `total` is their sum."""

    stage: int
    weights: float
    gradients: float
    optimizer: float
    activations: float  # kept for the backward pass at the worst moment: the pipeline's, and the tower's
    spare: float  # beside them at that moment
    buffers: float  # of communication, gathered weights, tiles

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "stage")


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step on the slowest rank, by cause. `total` is their sum."""

    products: float
    mixing: float
    moved: float  # memory-bound operations
    tower: float  # encoder and connector, all classes together
    tensor: float  # exposed traffic of tensor and context parallelism
    pipeline: float  # exposed sends
    data: float  # exposed gradient sums and weight gathers
    bubble: float
    update: float  # the optimizer
    loading: float  # waiting for data

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(getattr(self, f.name) for f in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a job will need, and what it gives. `ranks`: one Memory for each pipeline stage."""

    job: Job
    ranks: tuple[Memory, ...]
    time: StepTime
    model_flops: float  # of a step over all GPUs, by training/flops.py's convention
    steps: int
    parameters: int  # of the whole model
    trained: int

    @property
    def worst(self) -> Memory:
        """The fullest rank."""
        return max(self.ranks, key=lambda rank: rank.total)

    @property
    def mfu(self) -> float:
        """Model FLOPs over dense bf16 peak."""
        return self.model_flops / (self.time.total * self.job.world * self.job.gpu.bf16)

    @property
    def days(self) -> float:
        """Of the whole stage, without saves and failures."""
        return self.steps * self.time.total / 86_400

    def record(self) -> Mapping[str, Any]:
        """Plain data under stable keys; bytes, seconds, and rates of all GPUs together."""
        job, seconds = self.job, self.time.total
        return {
            "stage": job.stage,
            "gpu": job.gpu.name,
            "gpus": job.world,
            "layout": self.layout(),
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "memory_limit": job.gpu.memory,
            "memory": [dataclasses.asdict(rank) | {"total": rank.total} for rank in self.ranks],
            "step_seconds": dataclasses.asdict(self.time) | {"total": seconds},
            "tokens_per_second": job.load.tokens / seconds,
            "samples_per_second": job.load.samples / seconds,
            "model_flops_per_step": self.model_flops,
            "mfu": self.mfu,
            "mfu_convention": CONVENTION,
            "steps": self.steps,
            "days": self.days,
            "gpu_hours": 24 * self.days * job.world,
        }

    def layout(self) -> dict[str, Any]:
        """How the job is split, and what that leaves to a replica."""
        job = self.job
        beside = {"dp": job.dp, "micro_batches": job.micro_batches, "precision": job.precision}
        return job.parallel.model_dump(exclude={"overlap"}) | beside | {"recompute": job.recompute}
