"""Where the ranks of a silent attempt stand, and which of them holds the others up."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from megavlm.platform.runs import Attempt

from ..stacks import MISSING, suspects
from .allocation import Node
from .say import say
from .srun import beside_words, environment

SECONDS = 60.0


def find_suspects(attempt: Attempt, nodes: Sequence[Node], command: Sequence[str]) -> list[dict[str, Any]]:
    """{rank, node, why} of the ranks that hang, after a dump of all stacks into the attempt's folder `stacks`.

    `command` is what runs megavlm.slurm.stacks on a node.
    """
    words = [*beside_words("stacks", [node.name for node in nodes]), *command, str(attempt.root)]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment({}), timeout=SECONDS
        )
        said = done.stderr.strip() if done.returncode else ""
    except subprocess.TimeoutExpired:
        said = f"no answer in {SECONDS:.0f} s"
    if said:
        say(f"not all stacks could be had: {said}")
    return [_placed(one, nodes) for one in suspects(attempt.root / "stacks")]


def without_stacks(attempt: Attempt) -> str | None:
    """Why there are no stacks, where the tool for them is missing."""
    texts = (path.read_text() for path in (attempt.root / "stacks").glob("rank-*.txt"))
    return MISSING if any(MISSING in text for text in texts) else None


def _placed(one: Mapping[str, Any], nodes: Sequence[Node]) -> dict[str, Any]:
    """With the node's name for the host's; none where several nodes call themselves the same."""
    short = one["host"].partition(".")[0]
    names = [node.name for node in nodes if short in {node.name, node.host.partition(".")[0]}]
    return {"rank": one["rank"], "node": names[0] if len(names) == 1 else None, "why": one["why"]}
