"""Which of several machines this process stands for, when one command is started on all of them."""

from __future__ import annotations

import dataclasses
import os
import re

from .errors import ConfigError

COUNT, RANK, MEETING = "MEGAVLM_NODES", "MEGAVLM_NODE_RANK", "MEGAVLM_RENDEZVOUS"


@dataclasses.dataclass(frozen=True)
class Place:
    """Machine `rank` of `nodes`, which meet at `host`:`port`, an address of machine 0."""

    nodes: int = 1
    rank: int = 0
    host: str = "localhost"
    port: int = 0

    @property
    def leads(self) -> bool:
        """Whether this machine acts for all of them: makes folders, takes locks, tells."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other machine."""
        return self.nodes == 1


def place() -> Place:
    """This machine's place as whoever started the process set it; one machine alone when nobody did.

    Raises ConfigError for a place that cannot be.
    """
    nodes, rank = _number(COUNT, 1), _number(RANK, 0)
    if nodes == 1:
        return Place()
    meeting = re.fullmatch(r"([\w.:-]+):(\d{1,5})", os.environ.get(MEETING, ""))
    if not 0 <= rank < nodes or meeting is None:
        given = {name: os.environ.get(name) for name in (COUNT, RANK, MEETING)}
        raise ConfigError(f"no place among machines: {given}", fix=f"set {RANK} below {COUNT}, and {MEETING}=HOST:PORT")
    return Place(nodes, rank, meeting[1], int(meeting[2]))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is no number", where="the environment", fix=f"unset {name}")
    return int(text)
