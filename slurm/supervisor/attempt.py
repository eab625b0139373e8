"""One attempt's job step, from its start to what is known about its end."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from megavlm.platform import nodes as places
from megavlm.platform.runs import Attempt
from megavlm.platform.runs.attempt import VARIABLE

from .allocation import Node
from .hang import find_suspects, without_stacks
from .judge import SPEAKING, Facts, has_room, judge, verb_code
from .order import Order
from .policy import Ending
from .probe import NoSteps, silent_nodes
from .say import say, tell
from .srun import attempt_words, cpus_per_node, on_node, rendezvous_port
from .step import Step
from .watch import TRAINING, Silence, Watch

POLL_SECONDS = 0.5
NAMED = 8  # of many ranks, how many a line of the log names
WITHOUT_A_NODE = 5.0  # seconds for the living nodes' tasks to be killed, when Slurm waits for those of a dead one


class Trial:
    """`good`: nodes fit for work, more than needed where there are spares; `heard`: whether they are wanted back."""

    def __init__(self, order: Order, heard: Callable[[], bool], attempt: Attempt, good: Sequence[Node]) -> None:
        self._order, self._heard, self._attempt = order, heard, attempt
        self._nodes, self._spares = list(good[: order.nodes]), list(good[order.nodes :])
        self._watch = Watch(order.profile.hang, expected=order.verb[0] in TRAINING)
        self._next_look = 0.0
        self._dead: tuple[str, ...] = ()
        self._silence: Silence | None = None
        self._refused = ""
        self._suspects: list[dict[str, Any]] = []

    def work(self) -> Ending:
        """Start it, watch it to its end, and judge that."""
        step = self._start()
        while (code := step.poll()) is None:
            time.sleep(POLL_SECONDS)
            self._heard()
            self._look_after(step)
        return judge(self._facts(step, code))

    def _facts(self, step: Step, code: int) -> Facts:
        """What is known; nodes and disk are asked only where the verb itself has not spoken."""
        facts = Facts(code, self._attempt.events(), self._order.run.saved, log=step.last_words())
        spoke = verb_code(facts) in SPEAKING
        if not spoke and not self._dead and not self._heard():
            self._dead = self._silent()
        return dataclasses.replace(
            facts,
            room=spoke or has_room(self._order.run.root),
            dead=self._dead,
            refused=self._refused,
            silence=self._silence,
            suspects=self._suspects,
        )

    def _start(self) -> Step:
        order, name = self._order, f"attempt-{self._attempt.number:02d}"
        names = [node.name for node in self._nodes]
        self._tell_launch(names)
        words = [*attempt_words(name, names, cpus_per_node()), *on_node(order.profile, "node", *order.verb)]
        return Step(name, words, self._environment(), order.job_id, self._attempt.logs / "srun.log")

    def _tell_launch(self, names: Sequence[str]) -> None:
        order, spares = self._order, [node.name for node in self._spares]
        say(f"attempt {self._attempt.number} on {', '.join(names)}{'; spare: ' + ', '.join(spares) if spares else ''}")
        devices = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0) * (order.nodes + order.spares)
        told = {"job": order.name, "job_id": order.job_id, "restart": order.restarts, "nodes": names, "spares": spares}
        tell(self._attempt, "launched", **told, gpus=devices, processes=order.nodes * order.profile.processes)

    def _environment(self) -> dict[str, str]:
        order, port = self._order, rendezvous_port(self._order.job_id, self._attempt.number)
        meeting = f"{self._nodes[0].address}:{port}"
        return {
            VARIABLE: str(self._attempt.root.resolve()),
            places.COUNT: str(order.nodes),
            places.MEETING: meeting,
        }

    def _look_after(self, step: Step) -> None:
        """End the step when a node of it is gone, or when it hangs."""
        if time.monotonic() < self._next_look or step.poll() is not None:
            return
        if step.lost_a_node() and (dead := self._silent()):
            self._dead = dead
            step.kill(WITHOUT_A_NODE)
        elif silence := self._quiet():
            self._end_hang(step, silence)
        self._next_look = time.monotonic() + self._watch.interval / 2

    def _end_hang(self, step: Step, silence: Silence) -> None:
        say(f"no sign of ranks {listed(silence.ranks)} for {silence.seconds:.0f} s: which nodes answer?")
        self._dead = self._silent()
        if self._dead:
            step.kill(WITHOUT_A_NODE)
            return
        again = self._quiet()
        if again is None or step.poll() is not None:
            say("the ranks are heard again")
            return
        self._silence = again
        self._suspects = find_suspects(self._attempt, self._nodes, on_node(self._order.profile, "stacks"))
        told = {"step": again.step, "seconds": round(again.seconds, 1), "suspects": self._suspects}
        missing = {"note": note} if (note := without_stacks(self._attempt)) else {}
        tell(self._attempt, "hang", **told, stacks=str(self._attempt.root / "stacks"), **missing)
        step.kill()

    def _silent(self) -> tuple[str, ...]:
        try:
            return silent_nodes([node.name for node in self._nodes], self._order.host)
        except NoSteps as error:
            say(error.what)
            self._refused = error.what
            return ()

    def _quiet(self) -> Silence | None:
        """A silence of the ranks; none while the file system is away, through which alone they could be heard."""
        try:
            return self._watch.look(self._attempt.heartbeats())
        except (OSError, ValueError) as error:
            say(f"the heartbeats cannot be read: {error}")
            return None


def listed(ranks: Sequence[int]) -> str:
    """Some ranks for people; of thousands the first few."""
    more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return ", ".join(map(str, ranks[:NAMED])) + more
