"""What a job is about, as its script says."""

from __future__ import annotations

import dataclasses

from megavlm.platform.runs import RunFolder

from ..profile import ClusterProfile


@dataclasses.dataclass(frozen=True)
class Order:
    """What the job's script asks for. `spares` nodes more than `nodes` are allocated, to replace those that fail."""

    run: RunFolder
    name: str
    nodes: int
    spares: int
    verb: tuple[str, ...]
    profile: ClusterProfile
    job_id: int
    restarts: int
    host: str  # the node this runs on
    successor: bool  # requeueing is forbidden
