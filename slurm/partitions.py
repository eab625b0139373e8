"""What a cluster offers: its partitions, their limits and the size of their nodes, from one sinfo and one scontrol."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict

from .commands import run

SINFO = ("sinfo", "--noheader", "--all", "--format=%R|%D|%c|%G")
SCONTROL = ("scontrol", "show", "partition", "--all", "--oneliner")
SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Nodes:
    """`count` nodes of one size."""

    count: int
    cpus: int
    gpus: int


@dataclasses.dataclass(frozen=True)
class Partition:
    """`minutes` and `most_nodes`: of one job, None without a limit. `preempts`: Slurm's own word."""

    name: str
    default: bool
    minutes: int | None
    most_nodes: int | None
    preempts: str
    nodes: tuple[Nodes, ...]

    @property
    def cancels(self) -> bool:
        """Whether a preempted job is ended for good."""
        return "CANCEL" in self.preempts

    @property
    def gpus(self) -> int:
        """The most GPUs that one node has."""
        return max((nodes.gpus for nodes in self.nodes), default=0)

    def having(self, gpus: int, cpus: int) -> int:
        """How many nodes have at least so many GPUs and CPUs each."""
        return sum(nodes.count for nodes in self.nodes if nodes.gpus >= gpus and nodes.cpus >= cpus)


def ask() -> dict[str, Partition]:
    """Every partition by name. Raises SlurmError or MissingPackage when Slurm cannot be asked."""
    return parse(run(*SCONTROL, seconds=SECONDS), run(*SINFO, seconds=SECONDS))


def parse(scontrol: str, sinfo: str) -> dict[str, Partition]:
    """The partitions from what both commands print."""
    nodes = defaultdict(list)
    for line in sinfo.splitlines():
        name, count, cpus, gres = line.split("|", 3)
        nodes[name.strip()].append(Nodes(int(count), int(re.sub(r"\D", "", cpus)), gpu_count(gres)))
    found = {}
    for line in scontrol.splitlines():
        if line.startswith("PartitionName="):
            partition = _partition(dict(re.findall(r"(\w+)=(\S*)", line)), nodes)
            found[partition.name] = partition
    return found


def _partition(fields: dict[str, str], nodes: dict[str, list[Nodes]]) -> Partition:
    name = fields["PartitionName"]
    most = fields.get("MaxNodes", "")
    return Partition(
        name=name,
        default=fields.get("Default") == "YES",
        minutes=minutes(fields.get("MaxTime", "")),
        most_nodes=int(most) if most.isdecimal() else None,
        preempts=fields.get("PreemptMode", ""),
        nodes=tuple(nodes[name]),
    )


def gpu_count(gres: str) -> int:
    """GPUs in a node's generic resources, such as gpu:h100:4(S:0-1),gpu:8,nvme:1."""
    bare = re.sub(r"\([^)]*\)", "", gres)
    words = [word.split(":") for word in bare.split(",")]
    return sum(int(word[-1]) for word in words if word[0] == "gpu" and word[-1].isdecimal())


def minutes(text: str) -> int | None:
    """Slurm's [DAYS-]HOURS:MINUTES:SECONDS in whole minutes, None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, rest = (int(part or 0) for part in found.groups()[:3])
    return (days * 24 + hours) * 60 + rest
