"""Which nodes still answer: Slurm itself may take minutes to notice that one is gone."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .allocation import ask
from .say import say
from .srun import beside_words, environment

SECONDS = 20.0  # a living node answers within a tenth of one
AT_ONCE = 32
TRIES = 5


def silent_nodes(nodes: Sequence[str], witness: str, seconds: float = SECONDS) -> tuple[str, ...]:
    """Those of `nodes` on which a job step that does nothing does not come back within `seconds`.

    `witness` is a node that certainly lives, this one. While it does not answer either, the fault is slurmctld's or the
    network's, and nothing can be said of the others.
    """
    asked = list(dict.fromkeys([witness, *nodes]))
    for _ in range(TRIES):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = dict(zip(asked, pool.map(lambda node: _answers(node, seconds), asked), strict=True))
        if answers[witness]:
            return tuple(node for node in nodes if not answers[node])
        say(f"no job step starts, not even on {witness}")
        ask("scontrol", "show", "node", witness)  # comes back when slurmctld does
    return ()


def _answers(node: str, seconds: float) -> bool:
    words = [*beside_words("probe", [node]), "true"]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, env=environment({}), timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
