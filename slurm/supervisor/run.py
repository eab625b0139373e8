"""The supervisor's loop: one attempt after another, until there is nothing to do or the nodes are given back."""

from __future__ import annotations

import dataclasses
from functools import partial

from megavlm.platform.runs import Attempt

from ..commands import SlurmError
from . import history
from .allocation import FOREVER, Allocation, Node, ask, look, nodes_now, nodes_of_partition
from .attempt import Trial
from .begin import nothing_to_do
from .guard import Guard
from .judge import FULL
from .leave import requeue
from .order import Order
from .policy import Decision, Ending, Standing, Verdict, decide
from .preflight import check_nodes
from .say import say, tell
from .successor import Successor
from .wish import Wish

HURRY = 5.0  # seconds of patience with slurmctld when Slurm is ending the job


class Supervisor:
    """One job from its start to its end, or to where Slurm starts it again."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.wish = Wish(order.run, order.job_id, order.restarts, order.profile.save_seconds)
        self.successor = Successor(order.run, order.name, order.job_id)
        self.guard = Guard(order)
        self._bad: set[str] = set()  # nodes of this allocation that are not to be used again
        self._requeued = False

    def work(self) -> int:
        """Returns the job's exit code; it says little where the job was requeued."""
        order = self.order
        earlier = self._attempts()
        done = nothing_to_do(order.run, order.name, order.job_id, order.verb, earlier)
        if done is not None:
            say(f"nothing to do: {done[1]}")
            self.successor.dismiss(success=done[0] == 0)
            return done[0]
        history.close_lost(earlier, job=order.name, job_id=order.job_id)
        while True:
            if order.successor:
                self.successor.send()
            decision = self._attempt()
            if decision.action == "stop":
                return self._stop(decision)
            if decision.action == "leave":
                return self._leave(decision)

    def heard(self, attempt: Attempt) -> bool:
        """Whether the nodes are wanted back. A new wish goes to the ranks, through the attempt's folder, since a signal
        would hit every process of the step; and what cannot wait for the attempt's end is done."""
        if self.wish.news():
            say(f"asked to save and leave: {self.wish.why}")
            tell(attempt, "asked", why=self.wish.why)
            try:
                attempt.request_save()
            except OSError as error:
                say(f"the wish to save cannot be written: {error}")
            self._hasten()
        return self.wish.why is not None

    def _hasten(self) -> None:
        """Slurm may end this process before the attempt is over."""
        if self.wish.cancelled:
            self.successor.dismiss(success=False)
        elif self.wish.going and self.wish.why != "requeue" and not self.order.successor:
            self._requeued = requeue(self.order.job_id, self.order.restarts, self._excluded(HURRY), HURRY)

    def _attempts(self) -> list[Attempt]:
        order = self.order
        return history.attempts_of(order.run, order.name, history.job_ids(order.run, order.name, order.job_id))

    def _attempt(self) -> Decision:
        """One attempt, and what follows from it."""
        past = history.past(self._attempts())
        try:
            attempt = self.order.run.new_attempt()
        except OSError as error:
            full = FULL.search(str(error))
            return Decision("stop", 1, f"{error}; {'free space' if full else 'mend it'}, then `megavlm requeue RUN`")
        ending = self._try(attempt)
        self._bad |= set(ending.bad)
        asked = self.wish.why is not None
        usable = () if asked else tuple(node.name for node in self._nodes()[1])
        standing = Standing(usable, self.order.nodes, asked, self.wish.cancelled)
        decision = decide(ending, past, standing, self.order.profile.attempts)
        self._bad |= set(decision.exclude)
        self._tell(attempt, ending, decision)
        return decision

    def _try(self, attempt: Attempt) -> Ending:
        job, nodes = self._nodes()
        if len(nodes) < self.order.nodes:
            return self._not_started(f"of nodes {','.join(job.nodes)} only {len(nodes)} may be used")
        self.guard.keep([node.name for node in nodes])
        bad = check_nodes(self.order, attempt, nodes, self.wish.heard)
        self._bad |= set(bad)
        good = [node for node in nodes if node.name not in bad]
        if len(good) < self.order.nodes:
            told = ", ".join(f"{node}: {why}" for node, why in bad.items())
            return Ending(Verdict.PREFLIGHT, 1, f"too few nodes passed; {told}", bad=tuple(bad))
        if self.heard(attempt):
            return self._not_started(f"asked to leave before it began: {self.wish.why}")
        ending = Trial(self.order, partial(self.heard, attempt), attempt, good).work()
        return dataclasses.replace(ending, bad=tuple(sorted({*ending.bad, *bad})))

    def _not_started(self, reason: str) -> Ending:
        return Ending(Verdict.NOT_STARTED, 1, reason)

    def _nodes(self) -> tuple[Allocation, list[Node]]:
        """The job now, and its nodes that may be worked on, in its own order."""
        patience = HURRY if self.wish.going else FOREVER
        job = look(self.order.job_id, patience)
        nodes = nodes_now(job.nodes, patience).values()
        return job, [node for node in nodes if node.usable and node.name not in self._bad]

    def _excluded(self, patience: float = FOREVER) -> tuple[str, ...]:
        """Nodes that the next start of this job must not be given: bad ones, and those a user or an admin left out.

        None are added where the partition would have too few left; the job would wait for ever.
        """
        bad = {node for ending in history.past(self._attempts()) for node in ending.bad} | self._bad
        try:
            job = look(self.order.job_id, patience)
            nodes = nodes_of_partition(job.partition, patience)
        except SlurmError as error:
            say(f"no node is excluded: {error.what}")
            return ()
        excluded = (bad | set(job.excluded)) - set(job.required)
        if nodes - len(excluded) >= self.order.nodes + self.order.spares:
            return tuple(sorted(excluded)) if bad else ()
        say(f"{', '.join(sorted(bad)) or 'no node'} cannot be excluded: '{job.partition}' has only {nodes} nodes")
        return ()

    def _tell(self, attempt: Attempt, ending: Ending, decision: Decision) -> None:
        say(f"attempt {attempt.number}: {ending.verdict}; {decision.reason}; {decision.action}")
        job = {"job": self.order.name, "job_id": self.order.job_id, "restart": self.order.restarts}
        told = {"verdict": ending.verdict, "action": decision.action, "reason": decision.reason}
        nodes = sorted({*ending.bad, *decision.exclude})
        tell(attempt, "judged", **told, exclude=nodes, exit_code=decision.exit_code, **job)

    def _stop(self, decision: Decision) -> int:
        say(f"stops for good with exit code {decision.exit_code}: {decision.reason}")
        self.successor.dismiss(success=decision.exit_code == 0)
        if self._requeued and decision.exit_code:  # in a hurry, before it was known how the attempt would end
            ask("scancel", str(self.order.job_id))
        return decision.exit_code

    def _leave(self, decision: Decision) -> int:
        """Through the queue, by a requeue or by a job of its own."""
        exclude = self._excluded()
        if not self.order.successor and not self._requeued:
            self._requeued = self.wish.why == "requeue" or requeue(self.order.job_id, self.order.restarts, exclude)
        if not self._requeued:
            self.successor.send(exclude)
        return decision.exit_code
