"""The meeting as the leading node holds it, in a thread beside its own part as one of the guests."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from .meeting import Guest, Host, Message
from .pairs import Pair
from .survey import Survey, slowest

LOCAL_SECONDS = 30.0  # for one node to measure one figure of its own again
LOCAL = ("disk", "memory_disk", "matmul")


def hold(place: Path, address: str, count: int, worst: float, full: bool) -> None:
    """Gather, measure, and tell every node what was found of it."""
    host = Host(place, address)
    guests = host.gather(count)
    host.close()
    try:
        _survey(guests, address, worst, full)
    finally:
        for guest in guests.values():
            guest.line.close()


def _survey(guests: dict[str, Guest], address: str, worst: float, full: bool) -> None:
    survey = Survey(guests, worst, _own_figures(guests))
    clocks = survey.clocks()
    survey.by_pairs("network", survey.exchange)
    for figure in LOCAL:
        survey.locally(figure, LOCAL_SECONDS)
    together = AllReduce(survey, address).everything() if full and len(guests) > 1 else {}
    survey.tell({node: {"clock": clock, **together} for node, clock in clocks.items()})


def _own_figures(guests: dict[str, Guest]) -> dict[str, dict[str, float]]:
    """Figure -> node -> what it measured before it came."""
    told = {node: guest.ask({"do": "figures"}, LOCAL_SECONDS).get("figures", {}) for node, guest in guests.items()}
    return {name: {node: of[name] for node, of in told.items() if name in of} for name in LOCAL}


class AllReduce:
    """Tensors summed by torch.distributed: over the whole group, for the record, and by pairs, to find a culprit."""

    def __init__(self, survey: Survey, address: str) -> None:
        from .devices import JOIN_SECONDS, devices, host_store

        self._survey, self._seconds, self._devices = survey, JOIN_SECONDS, len(devices())
        self._store = host_store("0.0.0.0")
        self._place = [address, self._store.port]

    def everything(self) -> dict[str, Any]:
        """Pairs go into the survey's figures; the whole group's bytes of bus bandwidth per second are returned."""
        group = tuple(sorted(self._survey.present()))
        rates = self._measured([group], device=0)
        self._survey.by_pairs("all_reduce", self._pairs)
        return {"all_reduce_of_all": rates[group]}

    def _pairs(self, pairs: list[Pair]) -> dict[Pair, float | None]:
        """The slowest GPU counts: training waits for it."""
        found: dict[Pair, float | None] = {}
        for device in range(self._devices):
            for pair, rate in self._measured(pairs, device).items():
                known = found.get(pair, rate)
                found[pair] = slowest([rate, known])
        return found

    def _measured(self, groups: list[Any], device: int) -> dict[Any, float | None]:
        requests: dict[str, Message] = {}
        for group in groups:
            joint = {"do": "all_reduce", "size": len(group), "key": secrets.token_hex(8), "device": device}
            requests |= {node: {**joint, "rank": rank, "store": self._place} for rank, node in enumerate(group)}
        answers = self._survey.asked(requests, 2 * self._seconds)
        return {group: slowest(answers[node].get("rate") for node in group) for group in groups}
