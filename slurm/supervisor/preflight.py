"""The check of every node before an attempt, where the profile asks for one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence

from megavlm.platform.runs import Attempt

from ..preflight.judge import judge
from ..preflight.launch import Where, node_words, srun
from .allocation import Node
from .order import Order
from .say import say, tell
from .srun import environment

FOLDER = "preflight"  # below the attempt's
MARGIN = 30.0  # seconds for srun itself
POLL_SECONDS, GRACE_SECONDS = 0.2, 5.0


def check_nodes(order: Order, attempt: Attempt, nodes: Sequence[Node], hurry: Callable[[], bool]) -> dict[str, str]:
    """Node -> why it is not fit, of those that are not. Ends early, with nothing found, once `hurry` is true."""
    options = order.profile.preflight
    if options.kind == "none":
        return {}
    began, names, folder = time.monotonic(), [node.name for node in nodes], (attempt.root / FOLDER).resolve()
    folder.mkdir()
    words = srun(order.profile, names, Where(), str(order.job_id))
    words += node_words(order.profile, folder, full=options.kind == "full")
    if not _run(words, options.seconds + MARGIN, attempt, hurry):
        return {}
    verdict = judge(folder, names, options)
    told = {"seconds": round(time.monotonic() - began, 3), "bad": verdict.bad, "notes": verdict.notes}
    tell(attempt, "preflight", **told, folder=str(folder), job=order.name, job_id=order.job_id)
    for node, why in verdict.bad.items():
        say(f"preflight: {node} is not fit: {why}")
    return verdict.bad


def _run(words: Sequence[str], seconds: float, attempt: Attempt, hurry: Callable[[], bool]) -> bool:
    """Whether it was left to run to its end, or for as long as it may; a node without an answer is judged by that."""
    end = time.monotonic() + seconds
    with (attempt.logs / "preflight.log").open("ab") as log:
        step = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment({}), start_new_session=True
        )
    while step.poll() is None and time.monotonic() < end and not hurry():
        time.sleep(POLL_SECONDS)
    _end(step)
    return not hurry()


def _end(step: subprocess.Popen[bytes]) -> None:
    """On TERM srun ends its tasks; one that waits for a dead node does not end itself."""
    step.terminate()
    try:
        step.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        step.kill()
        step.wait()
