"""The ranks of a served model: rank 0 hears the requests, the others do what it does."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class Crew:
    """Hands plain data from rank 0 to the others, apart from the model's own messages."""

    def __init__(self) -> None:
        self.size, self.first = dist.get_world_size(), dist.get_rank() == 0
        self._group = dist.new_group(backend="gloo") if self.size > 1 else None

    def share(self, told: T) -> T:
        """What rank 0 gave, on every rank; the others' is ignored. All call this together."""
        if self._group is None:
            return told
        box: list[Any] = [told if self.first else None]
        dist.broadcast_object_list(box, src=0, group=self._group)  # between our own processes
        return box[0]
