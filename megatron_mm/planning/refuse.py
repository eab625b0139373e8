"""Why a stage cannot run in some layout on some GPUs: said before anything is queued. Loads no torch.

What training refuses by itself is refused by the same functions (training/checks.py, layout.py, backend/guards.py);
here stands what only the machines tell, or what would run and waste them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from megavlm.platform.errors import ConfigError

from ..backend.fp8 import RECIPES
from ..backend.guards import check_axes, require_fp8_sizes
from ..config import Parallel
from ..data.build import StageData
from ..training.checks import check_lengths, check_world
from .contracts import Estimate, Gpu, Load, Memory

Kind = Literal["layout", "waste", "memory"]
GIB = 2**30
ROOM = 0.95  # of the memory that what is proposed may fill: formulas are up to 5 % off, and an allocator leaves holes


@dataclasses.dataclass(frozen=True)
class Refusal:
    """kind: training would refuse it too or fail (layout), GPUs would idle (waste), memory would not do (memory).

    estimate: of what lacks memory.
    """

    kind: Kind
    error: ConfigError
    estimate: Estimate | None = None

    def mended_by(self, overrides: Sequence[str]) -> Refusal:
        """The same, with a layout that fits as its fix."""
        error = ConfigError(self.error.what, where=self.error.where, fix=" ".join(overrides))
        return dataclasses.replace(self, error=error)

    def record(self) -> dict[str, str | None]:
        """Plain data under stable keys."""
        return {"kind": self.kind, "what": self.error.what, "where": self.error.where, "fix": self.error.fix}


def refusal(kind: Kind, check: Callable[..., None], *of: object) -> Refusal | None:
    """What a check says, as a value."""
    try:
        check(*of)
    except ConfigError as error:
        return Refusal(kind, error)
    return None


def check_gpus(gpu: Gpu, world: int) -> None:
    """Raises ConfigError for a number of GPUs that machines do not come in."""
    if world < 1 or (world > gpu.per_node and world % gpu.per_node):
        near = max(round(world / gpu.per_node), 1) * gpu.per_node
        fix = f"--gpus {near}, or fewer than {gpu.per_node}"
        raise ConfigError(f"{world} GPUs are no whole machines of {gpu.per_node}", where="--gpus", fix=fix)


def check_layout(spec: StageData, gpu: Gpu, world: int) -> None:
    """Raises ConfigError where the stage's sizes do not divide, or the machines cannot do what it asks."""
    parallel, where = spec.stage.parallel, f"stages.{spec.name}"
    nodes = math.ceil(world / gpu.per_node)
    try:
        check_world(spec.name, parallel, nodes, world // nodes)
    except ConfigError as error:
        more = math.ceil(world / parallel.split) * parallel.split
        raise ConfigError(error.what, where=error.where, fix=f"--gpus {more}, or another layout") from None
    check_axes(spec.model, spec.stage, where)
    require_fp8_sizes(spec.model, spec.stage, where)
    check_lengths(spec.name, spec.stage, spec.model, world)
    _check_machine(parallel, gpu, where)
    if spec.stage.precision in RECIPES and gpu.fp8 is None:
        what = f"precision {spec.stage.precision}, and {gpu.name} multiplies nothing in FP8"
        raise ConfigError(what, where=f"{where}.precision", fix=f"set {where}.precision=bf16, or --gpu h100")


def _check_machine(parallel: Parallel, gpu: Gpu, where: str) -> None:
    """Tensor parallelism sums after every product: over the network that takes longer than the product."""
    if gpu.per_node % parallel.tp:
        raise ConfigError(
            f"parallel.tp {parallel.tp} does not stay within machines of {gpu.per_node} GPUs",
            where=f"{where}.parallel.tp",
            fix=f"set {where}.parallel.tp={math.gcd(parallel.tp, gpu.per_node)}, and pp or cp for the rest",
        )


def check_waste(spec: StageData, load: Load, world: int) -> None:
    """Raises ConfigError where replicas would have nothing to do, or not all of them."""
    parallel, where = spec.stage.parallel, f"stages.{spec.name}"
    dp, rows = world // parallel.split, spec.stage.mixture.rows_per_batch
    if dp > load.packs:
        raise ConfigError(
            f"{dp} replicas (of {parallel.split} GPUs each), and a global batch has {load.packs} packs: "
            f"{dp - load.packs} would idle",
            where=f"{where}.parallel",
            fix=f"--gpus {load.packs * parallel.split}, a larger tp, pp or cp, or a larger global batch",
        )
    if rows is not None and rows % dp:
        raise ConfigError(
            f"a global batch of {rows} packs does not divide by {dp} replicas: some wait for the others",
            where=f"{where}.mixture.packs_per_batch",
            fix=f"a global batch of {math.ceil(rows / dp) * dp}, or {math.gcd(rows, dp) * parallel.split} GPUs",
        )
    _check_interleaving(parallel, load.packs // dp, rows is not None, where)


def _check_interleaving(parallel: Parallel, packs: int, fixed: bool, where: str) -> None:
    """An interleaved pipeline goes through groups of as many packs as it has stages; blank ones fill them up."""
    if parallel.vp > 1 and (packs < parallel.pp or (fixed and packs % parallel.pp)):
        raise ConfigError(
            f"parallel.vp {parallel.vp} takes packs in groups of parallel.pp {parallel.pp}, and a replica has {packs}: "
            f"{-packs % parallel.pp} blank ones would fill them up",
            where=f"{where}.parallel.vp",
            fix=f"set {where}.parallel.vp=1, or a global batch of which each replica has a multiple of {parallel.pp}",
        )


def check_memory(estimate: Estimate, room: float = 1.0) -> None:
    """Raises ConfigError where the fullest rank needs more than this part of what the GPU has beside CUDA's own."""
    job, worst = estimate.job, estimate.worst
    if worst.total > room * job.gpu.memory:
        raise ConfigError(
            f"pipeline stage {worst.stage} needs {worst.total / GIB:.1f} GiB, and {job.gpu.name} has "
            f"{job.gpu.memory / GIB:.0f} GiB: {_shares(worst)}",
            where=f"stages.{job.stage}.parallel",
            fix=_relief(estimate),
        )


def _kinds(memory: Memory) -> dict[str, float]:
    return {f.name: getattr(memory, f.name) for f in dataclasses.fields(memory) if f.name != "stage"}


def _shares(memory: Memory) -> str:
    """The kinds, the largest first."""
    kinds = sorted(_kinds(memory).items(), key=lambda kind: -kind[1])
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in kinds if size > GIB / 20)


def _relief(estimate: Estimate) -> str:
    """What makes the largest kind smaller, where that is known without a search."""
    job = estimate.job
    largest = max(_kinds(estimate.worst).items(), key=lambda kind: kind[1])[0]
    if largest == "activations" and job.recompute != "full":
        return f"set stages.{job.stage}.recompute=full, or a larger tp, pp or cp"
    return "a layout that `megavlm plan` proposes, more GPUs, or some with more memory"
