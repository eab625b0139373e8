"""Where a training step's phases begin: what happens at one time is told apart by it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..training import step
from .contracts import Phase
from .walk import replaced


@contextlib.contextmanager
def told(begin: Callable[[Phase], object], most: int | None = None) -> Iterator[None]:
    """`begin(phase)` whenever `train_step` comes to one, "look" first; it has to be called right after.

    `most`: the pipeline's schedule goes through so many packs and leaves out those behind them.
    """

    def schedule(stages: Sequence[Any], packs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        begin("schedule")
        shares = run(stages, packs[:most], *args, **kwargs)
        begin("learn")
        return shares

    def finish(*args: Any) -> Any:
        begin("finish")
        return finishes(*args)

    def update(*args: Any) -> Any:
        begin("update")
        return updates(*args)

    with (
        replaced(step, "run_schedule", schedule) as run,
        replaced(step, "_finish_gradients", finish) as finishes,
        replaced(step, "update", update) as updates,
    ):
        begin("look")
        yield
