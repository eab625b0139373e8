"""Which nodes still answer: Slurm itself may take minutes to notice that one is gone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from megavlm.platform.errors import MegaVLMError

from .allocation import ask
from .srun import beside_words, environment

SECONDS = 20.0  # a living node answers within a tenth of one
AT_ONCE = 32
TRIES, PAUSE = 3, 1.0


class NoSteps(MegaVLMError):
    """Slurm creates no job step at all any more, though slurmctld answers."""


def silent_nodes(nodes: Sequence[str], witness: str, seconds: float = SECONDS) -> tuple[str, ...]:
    """Those of `nodes` on which a job step that does nothing does not come back within `seconds`.

    `witness` is a node that certainly lives, this one. While it does not answer either, the fault is slurmctld's, and
    nothing can be said of the others: NoSteps is raised when that lasts.
    """
    asked = list(dict.fromkeys([witness, *nodes]))
    for _ in range(TRIES):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            told = dict(zip(asked, pool.map(lambda node: _refusal(node, seconds), asked), strict=True))
        if told[witness] is None:
            return tuple(node for node in nodes if told[node] is not None)
        ask("scontrol", "show", "node", witness)  # comes back when slurmctld does
        time.sleep(PAUSE)
    raise NoSteps(f"no job step starts, not even on {witness}: {told[witness]}")


def _refusal(node: str, seconds: float) -> str | None:
    """Why no step ran there; None when one did."""
    words = [*beside_words("probe", [node]), "true"]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment({}), timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {seconds:.0f} s"
    return done.stderr.decode(errors="replace").strip() if done.returncode else None
