"""This job as Slurm sees it now: its state, its nodes, and whether it is being taken away."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Mapping

from megavlm.platform.errors import InputError

from ..commands import SlurmError, run
from .say import say

LONGEST_PAUSE = 30.0
FOREVER = float("inf")
# What Slurm's commands say when slurmctld does not answer; "failed: -15" when a signal to the job hit one as well.
AWAY = re.compile(
    r"unable to contact|socket timed out|gave no answer|connection refused|zero bytes|not connected|standby"
    r"|communication|connect failure|authentication|temporarily unable|failed: -\d+$",
    re.IGNORECASE,
)
UNKNOWN = re.compile(r"invalid (job|node|partition)|not found", re.IGNORECASE)
STAYS = {"RUNNING", "SUSPENDED", "CONFIGURING", "RESIZING", "SIGNALING"}
UNUSABLE = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING"}


@dataclasses.dataclass(frozen=True)
class Allocation:
    """`ends`: when its time is over, in seconds since 1970, or infinite. `excluded`, `required`: as sbatch was told."""

    job_id: int
    restarts: int
    state: str
    nodes: tuple[str, ...]
    partition: str
    ends: float
    preempted: bool
    excluded: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    @property
    def going(self) -> bool:
        """Whether Slurm is ending this job, for whatever reason."""
        return self.state not in STAYS


@dataclasses.dataclass(frozen=True)
class Node:
    """One machine: `address` is where Slurm itself reaches it, `host` what it calls itself."""

    name: str
    address: str
    host: str
    flags: frozenset[str]

    @property
    def usable(self) -> bool:
        """Whether work may be started on it: neither down nor wanted back by an admin."""
        return not self.flags & UNUSABLE


def own_job_id(environment: Mapping[str, str] = os.environ) -> int:
    """The id of the job that this process is the batch script of; raises InputError outside of one."""
    text = environment.get("SLURM_JOB_ID", "")
    if not text.isdecimal():
        raise InputError(
            "this is no Slurm job", where="SLURM_JOB_ID", fix="`megavlm submit` renders and sends the script"
        )
    return int(text)


def own_restarts(environment: Mapping[str, str] = os.environ) -> int:
    """How often Slurm has requeued this job so far."""
    return int(environment.get("SLURM_RESTART_COUNT") or 0)


def ask(*words: str, patience: float = FOREVER) -> str:
    """What a command of Slurm prints; while slurmctld is away, tried again with growing pauses for `patience` seconds.

    It may be restarted or overloaded for a while: no reason to give up a job. Raises SlurmError when the patience is
    over, and for any other failure at once. Of questions (`scontrol show`) only a name that Slurm does not know is one.
    """
    end, pause = time.monotonic() + patience, 1.0
    while True:
        try:
            return run(*words)
        except SlurmError as error:
            passing = not UNKNOWN.search(error.what) if "show" in words else AWAY.search(error.what)
            if not passing or time.monotonic() + pause > end:
                raise
            say(f"{error.what}; trying again in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def look(job_id: int, patience: float = FOREVER) -> Allocation:
    """The job now; raises SlurmError when Slurm does not answer within `patience` seconds."""
    return parse_job(job_id, ask("scontrol", "show", "job", str(job_id), patience=patience))


def parse_job(job_id: int, text: str) -> Allocation:
    """A job from the lines of `scontrol show job`."""
    fields = job_fields(text)
    return Allocation(
        job_id=job_id,
        restarts=int(fields.get("Restarts", "0")),
        state=fields.get("JobState", "UNKNOWN"),
        nodes=hostnames(fields.get("NodeList", "")),
        excluded=hostnames(fields.get("ExcNodeList", "")),
        required=hostnames(fields.get("ReqNodeList", "")),
        partition=fields.get("Partition", ""),
        ends=_moment(fields.get("StartTime", "")) + _duration(fields.get("TimeLimit", "")),
        preempted=fields.get("PreemptTime", "None") not in {"None", "N/A", "Unknown"},
    )


def job_fields(text: str) -> dict[str, str]:
    """Key -> value of the indented lines; the first line holds the job's name, which may look like anything."""
    indented = [line for line in text.splitlines() if line.startswith(" ")]
    pairs = (re.findall(r"(?:^|\s)([A-Za-z][\w/:]*)=(\S*)", line) for line in indented)
    return {key: value for line in reversed(list(pairs)) for key, value in line}


def nodes_of_partition(name: str, patience: float = FOREVER) -> int:
    """How many nodes a partition has, up or not."""
    return int(job_fields(ask("scontrol", "show", "partition", name, patience=patience)).get("TotalNodes", "0"))


def hostnames(listed: str) -> tuple[str, ...]:
    """Slurm's short form of several nodes, such as n[1-3], in full."""
    if listed in {"", "(null)"}:
        return ()
    return tuple(ask("scontrol", "show", "hostnames", listed).split())


def nodes_now(names: tuple[str, ...], patience: float = FOREVER) -> dict[str, Node]:
    """Name -> node, in the order given."""
    lines = ask("scontrol", "--oneliner", "show", "node", ",".join(names), patience=patience).splitlines()
    found = {node.name: node for line in lines if line.startswith("NodeName=") for node in [parse_node(line)]}
    return {name: found[name] for name in names if name in found}


def parse_node(line: str) -> Node:
    """A node from its line of `scontrol --oneliner show node`."""
    fields = {key: value for key, value in reversed(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))}
    name = fields["NodeName"]
    flags = frozenset(re.findall(r"[A-Z_]+", fields.get("State", "")))
    return Node(name, fields.get("NodeAddr", name), fields.get("NodeHostName", name), flags)


def _moment(text: str) -> float:
    """Seconds since 1970 of Slurm's local time; infinite where there is none."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return FOREVER


def _duration(text: str) -> float:
    """Seconds of [DAYS-]HH:MM:SS; infinite for UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return FOREVER
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
