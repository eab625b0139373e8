"""The check of every node before an attempt, where the profile asks for one."""

from __future__ import annotations

from collections.abc import Sequence

from megavlm.platform.runs import Attempt

from .allocation import Node
from .order import Order


def check_nodes(order: Order, attempt: Attempt, nodes: Sequence[Node]) -> dict[str, str]:
    """Node -> why it is not fit, of those that are not."""
    return {}
