"""Gradient sums and parameter gathers under way while the model computes (megatron-core's overlapping switches).

megatron-core starts a bucket's sum when each of its parameters got its gradient in the last micro-batch, and takes it
for granted that this is all of them, in one order, in every step and on every rank. Here it is not: layers that a
text-only pack does not come through get none, and what is learnt outside the pipeline gets its own after it. Measured
with megatron-core 0.16.1: such a step ends in an assertion, and ranks whose packs differ sum unlike buckets with each
other. So the sums are started here, always in one order, and those that nothing started are when the step is over.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch.nn import Parameter

from megavlm.platform.errors import MegaVLMError

from .. import backend
from ..config import Parallel


def overlaps(parallel: Parallel) -> bool:
    """Whether a stage overlaps: as it says, otherwise where GPUs hold several copies of the weights."""
    copies = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    return copies > 1 and (backend.device().type == "cuda" if parallel.overlap is None else parallel.overlap)


class Overlap:
    """The overlapped communication of one model: its parts in megatron-core's DistributedDataParallel.

    The tower runs apart from the pipeline, and a rank without tiles not at all: its gradients are summed after its
    backward pass and its weights awaited before its forward pass, instead of by hooks inside them.
    """

    def __init__(self, stages: Sequence[DistributedDataParallel], tower: DistributedDataParallel | None) -> None:
        self._stages, self._tower = stages, tower
        # The last chunk's gradients come first; within a chunk megatron-core numbers buckets as gradients come.
        self._sums = InOrder([group for stage in reversed(stages) for group in stage.bucket_groups])
        if tower is not None:
            tower.disable_forward_pre_hook(param_sync=False)
        for stage in stages:
            stage.config.no_sync_func = self._sums.hold
        for group in (group for part in self._parts for group in part.bucket_groups):
            group.param_gather_dispatched = True  # every rank has all weights until the first update

    @contextlib.contextmanager
    def step(self, late: Iterable[Parameter] = ()) -> Iterator[None]:
        """Around all forward and backward passes of a step; `late` get a gradient after the pipeline's schedule."""
        self._wait(self._tower.bucket_groups if self._tower is not None else ())
        self._sums.begin(late)
        with contextlib.ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part.no_sync())  # megatron-core starts none by itself
            yield
        self.settle()  # of layers that this step did not come through
        self._sums.finish()

    def gather(self) -> None:
        """After an update, begin to bring every rank what the others updated, in the order in which it is used."""
        for part in reversed(self._parts):
            for group in reversed(part.bucket_groups):
                group.start_param_sync()
                _alone(group.param_gather_handle)

    def settle(self) -> None:
        """Wait until every weight is here."""
        for part in self._parts:
            self._wait(part.bucket_groups)

    @property
    def _parts(self) -> list[DistributedDataParallel]:
        return [*reversed(self._stages), *([] if self._tower is None else [self._tower])]

    def _wait(self, groups: Iterable[Any]) -> None:
        for group in groups:
            if group.param_gather_handle is not None:
                group.param_gather_handle.wait()
                group.param_gather_handle = None


class InOrder:
    """Starts the gradient sums of `groups` (megatron-core's bucket groups) one after another, each as soon as can be.

    A rank that cannot start one yet starts none of those behind it, so all ranks start them in the same order, whatever
    each of them learns from.
    """

    def __init__(self, groups: Sequence[Any]) -> None:
        self._groups = groups
        self._place = {parameter: k for k, group in enumerate(groups) for parameter in group.params}
        self._missing: list[set[Parameter]] = []
        self._held: set[int] = set()
        self._started, self._listens = len(groups), True
        self._nodes = [self._watch(parameter) for parameter in self._place]

    def begin(self, late: Iterable[Parameter] = ()) -> None:
        """Before a step. What holds one of `late` waits for `finish`."""
        self._missing = [set(group.params) for group in self._groups]
        self._held = {self._place[parameter] for parameter in late if parameter in self._place}
        self._started, self._listens = 0, True

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Gradients inside are not the last of their step: megatron-core's no_sync_func."""
        self._listens = False
        try:
            yield
        finally:
            self._listens = True

    def finish(self) -> None:
        """Start what nothing started, after a step's last backward pass."""
        self._held, self._missing = set(), [set() for _ in self._groups]
        self._start()

    def _watch(self, parameter: Parameter) -> Any:
        """Hear when its gradient was added to the buffer: after megatron-core, which hangs on the same node."""
        node = parameter.expand_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
        node.register_hook(partial(InOrder._ready, weakref.proxy(self), parameter))  # type: ignore[union-attr]
        return node  # kept: the hook lives as long as the node, and would keep this, node and model, for good

    def _ready(self, parameter: Parameter, *gradients: Any) -> None:
        if not self._listens:
            return
        place = self._place[parameter]
        if place < self._started:
            raise MegaVLMError(
                f"a parameter of shape {tuple(parameter.shape)} got a gradient after its sum had begun",
                where="parallel.overlap",
                fix="set parallel.overlap=false for this stage",
            )
        self._missing[place].discard(parameter)
        self._start()

    def _start(self) -> None:
        while self._started < len(self._groups) and not self._missing[self._started]:
            if self._started in self._held:
                return
            self._groups[self._started].start_grad_sync()
            _alone(self._groups[self._started].grad_reduce_handle)
            self._started += 1


def _alone(begun: Any) -> None:
    """With gloo, wait: in overlapped steps its threads damaged the heap now and then (torch 2.13, docs/LOG.md)."""
    if begun is not None and backend.backend_name() == "gloo":
        begun.wait()
