"""Whether the stages fit this cluster's GPUs, as `megavlm plan` has it: what is proven impossible is never queued."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from megavlm.platform.errors import ConfigError

from . import trial
from .profile import ClusterProfile

LASTING = ("weights", "gradients", "optimizer")  # of a rank's bytes those that no other layout of a step gets round
MARGIN = 0.05  # what the formulas are wrong by, against a trace of the recipes' code (benchmarks/planner_memory.md)
GIB = 2**30


def check_plan(
    profile: ClusterProfile, recipe: str, overrides: Sequence[str], stages: Collection[str], nodes: int
) -> list[str]:
    """What is worth telling of the stages' memory; raises ConfigError for a stage that cannot be on these GPUs.

    Refused are layouts that machines or sizes do not allow, and weights, gradients and optimizer that alone are more
    than a GPU has. What is only likely not to do is told: samples are assumed there, and so are activations.
    """
    if not profile.gpus_per_node:
        return []
    if profile.gpu is None:
        return [f"memory is unchecked: the profile '{profile.name}' does not say `gpu`, which its machines have"]
    only = next(iter(stages)) if len(stages) == 1 else None
    told = trial.plan(recipe, overrides, profile.gpu, nodes, profile.processes, only)
    return [line for name, stage in told["stages"].items() if name in stages for line in _judged(name, stage)]


def _judged(name: str, stage: dict[str, Any]) -> Iterator[str]:
    """A line about a stage that may not do; raises ConfigError for one that cannot."""
    refused = stage["refused"]
    if refused is None:
        return
    if refused["kind"] == "layout":
        raise ConfigError(refused["what"], where=refused["where"], fix=refused["fix"])
    if refused["kind"] == "memory":
        _require_room(name, stage["own"], refused["fix"])
    yield f"stage {name} may not do here: {refused['what']}; {refused['fix']}"


def _require_room(name: str, own: dict[str, Any], fix: str) -> None:
    """Raises ConfigError where what lasts from step to step is more than the GPU has."""
    lasting, room = [sum(rank[kind] for kind in LASTING) for rank in own["memory"]], own["memory_limit"]
    if (1 - MARGIN) * max(lasting) > room:
        what = (
            f"weights, gradients and optimizer of stage '{name}' take {max(lasting) / GIB:.1f} GiB on a GPU, and "
            f"{own['gpu']} has {room / GIB:.0f} GiB beside CUDA's own"
        )
        raise ConfigError(what, where=f"stages.{name}.parallel", fix=fix)
