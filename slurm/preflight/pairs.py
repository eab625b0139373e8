"""Who meets whom: rounds of pairs, as in a tournament.

Halving the fleet again and again finds one slow node in log2(n) rounds, and loses its way when there are two. Rounds of
pairs take the same time whatever the size of the fleet, since all pairs of a round work side by side, and name every
slow node: whoever met one in a round meets others in the next, and only its best round counts.
"""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[str, str]
ROUNDS = 3


def rounds_of_pairs(nodes: Sequence[str], rounds: int = ROUNDS) -> list[list[Pair]]:
    """Up to `rounds` rounds in which nobody meets the same partner twice; with an odd number, one waits in each.

    The circle method: the first stays, all others move on by one seat after each round.
    """
    seats: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    plan = []
    for _ in range(min(rounds, len(seats) - 1)):
        facing = zip(seats[: len(seats) // 2], reversed(seats), strict=False)
        plan.append([(a, b) for a, b in facing if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return plan
