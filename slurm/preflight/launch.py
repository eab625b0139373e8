"""One srun over the nodes of a check, in a job of its own or inside the one that is running."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import megavlm
from megavlm.platform.errors import ConfigError, MissingPackage

from ..commands import clean_environment, run
from ..container import inside, mounted, python, srun_words
from ..profile import ClusterProfile

MODULE = "megavlm.slurm.preflight.node"
JOB = "megavlm-preflight"
STEP = ("--export=ALL", "--input=none", "--mpi=none", "--no-kill", "--kill-on-bad-exit=0", "--wait=0")


@dataclasses.dataclass(frozen=True)
class Where:
    """Which nodes: so many of a partition (None: all that are idle), or those of a list in Slurm's short form."""

    partition: str | None = None
    nodes: int | None = None
    nodelist: str | None = None


def node_words(profile: ClusterProfile, folder: Path, full: bool) -> list[str]:
    """What every node runs, in its container if there is one."""
    options = [f"--worst={profile.preflight.worst}", f"--seconds={profile.preflight.seconds:g}"]
    words = [python(profile, sys.executable), "-m", MODULE, str(folder), *options, *(["--full"] if full else [])]
    return inside(profile, words)


def with_setup(profile: ClusterProfile, words: Sequence[str]) -> list[str]:
    """`words` after the admin's set-up lines, where there are any; the words themselves pass no shell's reading."""
    return ["bash", "-c", "\n".join([*profile.setup, 'exec "$@"']), "bash", *words] if profile.setup else [*words]


def srun(profile: ClusterProfile, names: Sequence[str], where: Where, job: str | None) -> list[str]:
    """srun with one task on each of the nodes; `job`: the id of the running job that they belong to.

    A node that fails ends nobody else's part, and what is left after the profile's patience ends by itself.
    """
    count = f"{len(names) if names else where.nodes}"
    words = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--job-name={JOB}"]
    words += [*STEP, f"--time={math.ceil(profile.preflight.seconds / 60) + 1}"]
    words += [f"--nodelist={','.join(names)}"] if names else []
    if job is not None:
        return [*words, f"--jobid={job}", "--overlap", *srun_words(profile)]
    asked: dict[str, str | int | None] = {"partition": where.partition or profile.partition}
    asked |= {"account": profile.account, "qos": profile.qos, "cpus-per-task": profile.cpus_per_task}
    asked |= {"gpus-per-node": profile.gpus_per_node or None, "mem": profile.memory}
    words += [f"--{name}={value}" for name, value in asked.items() if value is not None]
    return [*words, *(["--exclusive"] if profile.exclusive else []), *_further(profile), *srun_words(profile)]


def start(profile: ClusterProfile, folder: Path, full: bool, where: Where) -> list[str]:
    """Run the check and return the names of the nodes it was started on; their records are then in `folder`.

    srun's own messages, such as that it waits for nodes, go to stderr. Raises ConfigError when no node is idle.
    """
    if shutil.which("srun") is None:
        raise MissingPackage("'srun' is not on this machine", where="PATH", fix="run this on a login node")
    job = os.environ.get("SLURM_JOB_ID")
    names = chosen(where, job, profile.partition)
    profile = mounted(profile, [folder, *code_folders()])
    words = srun(profile, names, where, job) + with_setup(profile, node_words(profile, folder, full))
    subprocess.run(words, env=environment(profile), stdout=sys.stderr)
    return names or _used(folder)


def environment(profile: ClusterProfile) -> dict[str, str]:
    """What the nodes get: little of the caller's, the path to this code, and the profile's own."""
    passed = {name: os.environ[name] for name in profile.pass_environment if name in os.environ}
    return clean_environment({"PYTHONPATH": os.pathsep.join(map(str, code_folders())), **profile.environment, **passed})


def code_folders() -> list[Path]:
    """The folders that hold the running package."""
    return list(dict.fromkeys(Path(portion).absolute().parent for portion in megavlm.__path__))


def chosen(where: Where, job: str | None, partition: str | None) -> list[str]:
    """The nodes by name; empty when Slurm is to choose `where.nodes` of them."""
    if where.nodelist:
        return hostnames(where.nodelist)
    if job is not None:
        return hostnames(os.environ.get("SLURM_JOB_NODELIST", ""))[: where.nodes]
    if where.nodes is not None:
        return []
    return idle(where.partition or partition)


def idle(partition: str | None) -> list[str]:
    """The idle nodes of a partition, or of the default one. Raises ConfigError when there is none."""
    of = [f"--partition={partition}"] if partition else []
    told = run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N|%P", *of).splitlines()
    rows = [line.strip().split("|") for line in told if "|" in line]
    names = [name for name, owner in rows if partition or owner.endswith("*")]
    if not names:
        fix = "wait, or name nodes with --nodelist or --nodes: then the check waits in the queue"
        raise ConfigError(f"no node of {partition or 'the default partition'} is idle", where="--cluster", fix=fix)
    return list(dict.fromkeys(names))


def hostnames(listed: str) -> list[str]:
    """Slurm's short form of several nodes, such as n[1-3], in full."""
    return run("scontrol", "show", "hostnames", listed).split() if listed else []


def _used(folder: Path) -> list[str]:
    """The nodes that Slurm chose, as any of them tells; none when nobody could."""
    from .judge import read_records

    told = read_records(folder, [path.stem for path in sorted(folder.glob("*.json"))])
    lists = [record["step_nodes"] for record in told.values() if record and record.get("step_nodes")]
    return hostnames(lists[0]) if lists else []


def _further(profile: ClusterProfile) -> list[str]:
    """The profile's further options, as far as they say which nodes: srun does not know all that sbatch takes."""
    said: Mapping[str, str | bool] = profile.sbatch
    known = {name: said[name] for name in ("constraint", "reservation", "exclude", "gres", "licenses") if name in said}
    return [f"--{name}={value}" for name, value in known.items() if isinstance(value, str)]
