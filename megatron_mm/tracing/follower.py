"""Every storage from its birth to its end: how many bytes are alive, of which kind, and which module made them."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor

from .contracts import Kind, Peak, Phase

KINDS: tuple[Kind, ...] = ("weights", "gradients", "optimizer", "activations", "buffers")
MOST_CAUSES = 16
# What a storage is for that is born in a phase, until somebody knows better.
BORN: dict[Phase, Kind] = {
    "build": "weights",
    "look": "activations",
    "schedule": "activations",
    "learn": "activations",
    "finish": "buffers",
    "update": "optimizer",
}


@dataclasses.dataclass
class _Storage:
    end: weakref.ref  # kept, or it would not be told of the end
    bytes: int
    kind: Kind
    cause: str


class Follower:
    """Counts storages once, however many tensors are views of them. `cause` says where the work is just now."""

    def __init__(self, cause: Callable[[], str] = lambda: "") -> None:
        self._cause = cause
        self._alive: dict[int, _Storage] = {}  # by address, which a later storage may have again
        self._bytes: Counter[tuple[Kind, str]] = Counter()
        self._total, self._most, self._told = 0, 0, True
        self._phase: Phase = "build"
        self._peak: Peak | None = None
        self._peaks: list[Peak] = []

    @property
    def total(self) -> int:
        """Bytes alive."""
        return self._total

    @property
    def kinds(self) -> dict[Kind, int]:
        """Bytes alive by kind, every kind named."""
        return {kind: sum(n for (of, _), n in self._bytes.items() if of == kind) for kind in KINDS}

    def see(self, tensor: Tensor) -> None:
        """Follow the tensor's storage, if that is new or has another size now."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._alive.get(key)
        if known is None:
            known = _Storage(weakref.ref(storage, partial(self._gone, key)), 0, BORN[self._phase], self._cause())
            self._alive[key] = known
        if known.bytes != size:
            self._count(known, size - known.bytes)
            known.bytes = size

    def name_all(self, kind: Kind) -> None:
        """Say what everything is for that is alive."""
        for storage in self._alive.values():
            self._rename(storage, kind, storage.cause)

    def name(self, kind: Kind, tensors: Iterable[Tensor], cause: str | None = None) -> None:
        """Say what some tensors are for, and what made them where their module is not the answer."""
        for tensor in tensors:
            self.see(tensor)
            storage = self._alive[tensor.untyped_storage()._cdata]
            self._rename(storage, kind, storage.cause if cause is None else cause)

    def begin(self, phase: Phase) -> None:
        """The next phase, after closing the one before."""
        self.close()
        self._phase, self._most, self._told = phase, self._total, False

    def close(self) -> None:
        """Write down the peak of the phase that ends."""
        self._tell()
        if self._peak is not None:
            self._peaks.append(self._peak)
        self._peak = None

    @property
    def peaks(self) -> tuple[Peak, ...]:
        """Of the phases that are closed, in their order."""
        return tuple(self._peaks)

    def _count(self, storage: _Storage, more: int) -> None:
        self._total += more
        self._bytes[storage.kind, storage.cause] += more
        if self._total > self._most:
            self._most, self._told = self._total, False

    def _rename(self, storage: _Storage, kind: Kind, cause: str) -> None:
        self._bytes[storage.kind, storage.cause] -= storage.bytes
        storage.kind, storage.cause = kind, cause
        self._bytes[kind, cause] += storage.bytes

    def _gone(self, key: int, end: object) -> None:
        self._tell()
        storage = self._alive.pop(key)
        self._total -= storage.bytes
        self._bytes[storage.kind, storage.cause] -= storage.bytes

    def _tell(self) -> None:
        """Describe the fullest moment, before anything of it goes: once for each time that the total was never more."""
        if self._told or self._total < self._most:
            return
        self._told = True
        causes = Counter[str]()
        for (_, cause), size in self._bytes.items():
            causes[cause] += size
        self._peak = Peak(self._phase, self._total, self.kinds, tuple(causes.most_common(MOST_CAUSES)))
