"""Why a job waits, in plain words, and what to do about it. The words are those of squeue(1) and of Slurm's source."""

from __future__ import annotations

import dataclasses
import re

NOTHING = "nothing: it starts by itself"


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a job waits and what to do, with {job} and {run} to be filled in.

    `blocked`: it will not start before somebody does something.
    """

    text: str
    fix: str = NOTHING
    blocked: bool = False


def _blocked(text: str, fix: str) -> Reason:
    return Reason(text, fix, blocked=True)


_NODES_AWAY = Reason(
    "nodes it needs are down, drained or reserved", "sinfo -R says why and since when; ask for fewer or other nodes"
)
_RELEASE = "scontrol release {job}"
_ADMIN = "ask the administrators"
REASONS = {
    "None": Reason("the scheduler has not looked at it yet"),
    "Priority": Reason("jobs of higher priority stand before it"),
    "Resources": Reason("it is next, and waits for nodes or GPUs that are in use"),
    "Dependency": Reason("it waits for another job to end"),
    "DependencyNeverSatisfied": _blocked(
        "the job it waits for did not end well, so it can never start",
        "megavlm cancel {run}, mend what failed, megavlm requeue {run}",
    ),
    "BeginTime": Reason("its earliest time to start has not come; a requeued job waits about two minutes"),
    "JobArrayTaskLimit": Reason("as many tasks of its array run as its throttle allows"),
    "ReqNodeNotAvail": _NODES_AWAY,
    "Nodes required for job are DOWN": _NODES_AWAY,
    "NodeDown": Reason("a node it was given is down", "sinfo -R says why; it waits for the node, or requeue it"),
    "FrontEndDown": Reason("no front-end node is up", _ADMIN),
    "BadConstraints": _blocked(
        "no set of nodes can ever meet its demands",
        "compare nodes, GPUs, memory and constraint with: scontrol show node",
    ),
    "PartitionNodeLimit": _blocked(
        "it asks for more (or fewer) nodes than its partition allows, or they are down",
        "scontrol show partition tells MaxNodes; submit with fewer nodes or elsewhere",
    ),
    "PartitionTimeLimit": _blocked(
        "it asks for more time than its partition allows",
        "submit with fewer minutes; a run saves and goes on in its next job",
    ),
    "PartitionDown": Reason("its partition is down and starts no jobs", f"{_ADMIN}, or submit to another partition"),
    "PartitionInactive": Reason("its partition takes no jobs", f"{_ADMIN}, or submit to another partition"),
    "PartitionConfig": _blocked("its partition does not allow what it asks for", "see scontrol show partition"),
    "AccountNotAllowed": _blocked("its account may not use this partition", "set another account or partition"),
    "QOSNotAllowed": _blocked("its QOS may not be used with this account or partition", "set another qos"),
    "InvalidAccount": _blocked("its account does not exist or is not yours", "set account; sacctmgr show assoc lists"),
    "InvalidQOS": _blocked("its QOS does not exist or is not yours", "set qos; sacctmgr show assoc lists yours"),
    "JobHeldUser": _blocked("its owner holds it", _RELEASE),
    "JobHeldAdmin": _blocked("an administrator holds it, or its priority is 0", _ADMIN),
    "job requeued in held state": _blocked("it was put back into the queue and is held", _RELEASE),
    "launch failed requeued held": _blocked(
        "its node could not start it (prolog, container or node trouble); it was put back and is held",
        "sinfo -R names bad nodes; then " + _RELEASE,
    ),
    "JobHoldMaxRequeue": _blocked("it was requeued as often as this cluster allows and is held", _RELEASE),
    "JobLaunchFailure": _blocked(
        "its node could not start it, most often because its log cannot be written there",
        "see that the run folder is on a file system that every node has",
    ),
    "SystemFailure": Reason("Slurm itself failed", _ADMIN),
    "Licenses": Reason("the licenses it needs are in use"),
    "Reservation": Reason("its reservation has not begun, or is full", "scontrol show reservation tells when"),
    "ReservationDeleted": _blocked("its reservation is gone", "submit without the reservation"),
    "DeadLine": _blocked("it cannot end before its deadline any more", "submit it anew"),
    "Cleaning": Reason("its former try is being cleared away"),
    "Prolog": Reason("the check of its nodes before the start is running"),
    "SchedDefer": Reason("immediate starts are off here; the next round of the scheduler looks at it"),
    "PowerNotAvail": Reason("not enough electrical power is free"),
    "PowerReserved": Reason("electrical power is reserved for somebody else"),
    "BurstBufferResources": Reason("the burst buffer is full"),
    "BurstBufferStageIn": Reason("its data is on the way to the burst buffer"),
    "BurstBufferOperation": _blocked("the burst buffer refused", _ADMIN),
    "FedJobLock": Reason("another cluster of the federation is looking at it"),
    "MaxMemPerLimit": _blocked("it asks for more memory for each CPU or node than is allowed", "ask for less memory"),
    "AccountingPolicy": Reason("a limit of its account or QOS stands in its way", "sacctmgr show assoc and qos tell"),
    "MaxRequeueReached": _blocked("it was requeued as often as this cluster allows", _RELEASE),
    "AssociationJobLimit": Reason("your account already runs as many jobs as it may"),
    "AssociationResourceLimit": Reason("your account already uses the resources it may"),
    "AssociationTimeLimit": _blocked("your account has used up its time", _ADMIN),
    "QOSJobLimit": Reason("its QOS already runs as many jobs as it may"),
    "QOSResourceLimit": Reason("its QOS already uses the resources it may"),
    "QOSTimeLimit": _blocked("its QOS has used up its time", _ADMIN),
    "QOSUsageThreshold": _blocked("its QOS demands a better fair-share than yours is", "wait, or use another QOS"),
}
_OWNERS = {"QOS": "its QOS", "Assoc": "your account", "": "its QOS or account"}
_GOODS = {
    "cpu": "CPUs", "node": "nodes", "mem": "memory", "memory": "memory", "gres": "GPUs (generic resources)",
    "jobs": "running jobs", "submitjobs": "queued jobs", "submitjob": "queued jobs", "wall": "time",
    "wallduration": "time", "energy": "energy", "license": "licenses", "bb": "burst buffer", "billing": "billing",
    "unknown": "something that Slurm does not name",
}  # fmt: skip
_FAMILY = re.compile(
    r"(?P<owner>QOS|Assoc|)(?P<kind>Grp|Max|Min)(?P<good>[A-Za-z]+?)(?P<run>Run)?(?P<minutes>Minutes)?"
    r"(?:Per(?P<per>Job|Node|User|Account))?(?:NotSatisfied)?(?:Limit)?"
)


def explain(word: str) -> Reason:
    """The meaning of a pending reason as squeue or scontrol shows it; an unknown one is told in Slurm's own word."""
    plain = word.replace("_", " ").strip()
    head = plain.partition(",")[0]
    known = REASONS.get(head) or next((REASONS[start] for start in REASONS if plain.startswith(f"{start} ")), None)
    return known or _limit(head) or Reason(f"Slurm says '{plain}'", "see JOB REASON CODES in: man squeue")


def _limit(word: str) -> Reason | None:
    """The hundred limits that accounting can set on a QOS or an account, read by the parts of their names."""
    found = _FAMILY.fullmatch(word)
    if found is None:
        return None
    owner = _OWNERS[found["owner"]]
    good = _GOODS.get(found["good"].lower(), found["good"])
    if found["minutes"]:
        good = f"minutes of {good}" + (" for running jobs" if found["run"] else "")
    if found["kind"] == "Min":
        return _blocked(f"it asks for less than {owner} demands: {good}", "ask for more, or use another QOS")
    if found["kind"] == "Max" and found["per"] in {"Job", "Node"}:
        part = "one job" if found["per"] == "Job" else "one job on a node"
        return _blocked(f"it asks for more than {owner} allows {part}: {good}", "ask for less, or use another QOS")
    who = "all its jobs together" if found["kind"] == "Grp" else f"one {(found['per'] or 'user').lower()}"
    return Reason(f"{owner} allows {who} no more than is in use: {good}", "it waits until others end, or use less")
