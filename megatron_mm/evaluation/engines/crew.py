"""The ranks of a model that is being asked: rank 0 drives, the others do what it does and hand back what they found."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from megatron.core import parallel_state

from ...serving.crew import Crew as ServingCrew

T = TypeVar("T")
WAIT = timedelta(days=1)  # between two questions a data set may be read, or programs be run


class Crew:
    """Plain data between rank 0 and the others, apart from the model's own messages. All call its methods together."""

    def __init__(self) -> None:
        self.first, self._size = dist.get_rank() == 0, dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=WAIT) if self._size > 1 else None
        self.replica = parallel_state.get_data_parallel_rank()
        self.replicas = parallel_state.get_data_parallel_world_size()
        # the ranks of a replica all find the same, so one of them speaks
        behind = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
        self._speaks = behind == (0, 0)

    def share(self, told: T) -> T:
        """What rank 0 gave, on every rank; the others' is ignored."""
        if self._group is None:
            return told
        box: list[Any] = [told if self.first else None]
        dist.broadcast_object_list(box, src=0, group=self._group)  # between our own processes
        return box[0]

    def gather(self, found: dict[int, T]) -> dict[int, T]:
        """On rank 0 what all replicas found; on the others their own."""
        if self._group is None:
            return found
        parts: list[Any] | None = [None] * self._size if self.first else None
        dist.gather_object(found if self._speaks else {}, parts, dst=0, group=self._group)
        return found if parts is None else {number: value for part in parts for number, value in part.items()}


class Alone(ServingCrew):
    """For the server's engine: no client hangs up here, and all ranks of a replica go on together by themselves."""

    def __init__(self) -> None:
        self.size, self.first, self._group = 1, True, None
