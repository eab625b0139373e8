"""Published throughput of dense models, as points.yaml has it, and how each source counts FLOPs. Loads no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import PositiveFloat, PositiveInt, model_validator

from megavlm.platform.config import Config

from ..config import Parallel
from .contracts import Attention, Recompute
from .hardware import TERA, find_gpu

# Convention -> passes over the products' 2 FLOPs for each weight, and how often attention's L h s counts, in a token
COUNTED = {"causal": (3, 6), "full": (3, 12), "none": (2, 0)}


class Shape(Config):
    """A dense decoder with untied tables; not `gated`: an MLP of two products."""

    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    ffn: PositiveInt
    vocab: PositiveInt
    gated: bool = True

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied with: all but the embedding, norms and biases."""
        keys = 2 * self.kv_heads * (self.hidden // self.heads)
        layer = self.hidden * (2 * self.hidden + keys + (3 if self.gated else 2) * self.ffn)
        return self.layers * layer + self.vocab * self.hidden


class Point(Config):
    """A published row: what ran, and what it reached. See points.yaml for the fields."""

    point: PositiveInt
    source: str
    name: str
    shape: Shape
    gpu: str
    gpus: PositiveInt
    sequence: PositiveInt
    batch: PositiveInt
    micro: PositiveInt = 1
    precision: Literal["bf16", "fp8"] = "bf16"
    parallel: Parallel = Parallel()
    fsdp: PositiveInt = 1
    recompute: Recompute = "none"
    tp_overlap: bool = False
    fused: bool = True
    flash: bool = True
    attention: Attention = "fused"
    train: list[str] = ["decoder"]
    convention: Literal["causal", "full", "none"] = "causal"
    tokens: PositiveFloat | None = None
    tflops: PositiveFloat | None = None
    mfu: PositiveFloat | None = None
    seconds: PositiveFloat | None = None
    gib: PositiveFloat | None = None
    guess: str = ""

    @model_validator(mode="after")
    def _has_a_result(self) -> Point:
        assert self.tokens or self.tflops or self.seconds, f"{self.name}: tokens, tflops or seconds"
        return self

    @property
    def dp(self) -> int:
        """Replicas."""
        return self.gpus // self.parallel.split

    @property
    def flops_per_token(self) -> float:
        """By the convention of its source."""
        passes, attention = COUNTED[self.convention]
        shape = self.shape
        return 2.0 * passes * shape.multiplied + float(attention) * shape.layers * shape.hidden * self.sequence

    @property
    def step(self) -> float:
        """Seconds of a step as published: as such, or from tokens or TFLOP/s."""
        tokens = self.batch * self.sequence / self.gpus
        if self.seconds:
            return self.seconds
        return tokens / self.tokens if self.tokens else tokens * self.flops_per_token / (self.tflops or 1) / TERA

    @property
    def claimed(self) -> float | None:
        """TFLOP/s per GPU as published, as such or as a part of the peak in percent."""
        return self.mfu * find_gpu(self.gpu).bf16 / 100 / TERA if self.mfu else self.tflops

    @property
    def counted(self) -> float:
        """TFLOP/s per GPU that the published step is, by the convention."""
        return self.flops_per_token * self.batch * self.sequence / self.gpus / self.step / TERA


@cache
def points() -> tuple[Point, ...]:
    """Every row that can be predicted."""
    known = _known()
    rows = [dict(row) for row in known["rows"] if "outside" not in row]
    return tuple(Point.parse({"shape": known["models"][row.pop("model")], **row}, row["name"]) for row in rows)


def outside() -> dict[str, str]:
    """The rows that can't, by point and name, and why."""
    return {f"{row['point']}: {row['name']}": row["outside"] for row in _known()["rows"] if "outside" in row}


def sources() -> dict[str, str]:
    """Where the rows stand, by their short names."""
    return dict(_known()["sources"])


def _known() -> dict:
    return yaml.safe_load(Path(__file__).with_name("points.yaml").read_text())
