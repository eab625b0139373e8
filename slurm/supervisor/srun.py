"""Words and environment of the job steps: the attempt's own, and short ones beside it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

from ..container import inside, python, srun_words
from ..profile import ClusterProfile

# What sbatch leaves in the environment of its script, and srun would take for options of its own. Steps say all that
# matters on their command line; options given twice and differently are refused by some versions.
NOT_HANDED_ON = (
    "SLURM_CPUS_PER_TASK",
    "SRUN_CPUS_PER_TASK",
    "SLURM_TRES_PER_TASK",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_EXPORT_ENV",
)
FIRST_PORT, PORTS = 20000, 10000


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """That of a job step: this job's own, and `extra`."""
    return {name: value for name, value in os.environ.items() if name not in NOT_HANDED_ON} | dict(extra)


def task_words(name: str, nodes: Sequence[str]) -> list[str]:
    """srun with one task on each of `nodes`. The whole environment goes along, whatever sbatch was told of it."""
    count = str(len(nodes))
    words = ["srun", f"--job-name={name}", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
    return [*words, f"--nodelist={','.join(nodes)}", "--export=ALL", "--input=none", "--mpi=none"]


def attempt_words(name: str, nodes: Sequence[str], cpus: int | None) -> list[str]:
    """The attempt's step: it outlives the death of a node until we end it, and ends as a whole when a task fails.

    cpus: what each task may use; srun does not take it over from sbatch in Slurm 22.05 to 23.02. --overlap: a step that
    lost a node keeps its place on the others until Slurm has given the node up, and its successor must not wait for it.
    """
    given = [f"--cpus-per-task={cpus}"] if cpus else []
    return [*task_words(name, nodes), "--overlap", "--no-kill", "--kill-on-bad-exit=1", "--wait=0", "--label", *given]


def beside_words(name: str, nodes: Sequence[str]) -> list[str]:
    """A step beside the attempt's own, on what that one uses."""
    return [*task_words(name, nodes), "--overlap"]


def on_node(profile: ClusterProfile, module: str, *words: str) -> list[str]:
    """What follows srun's own words to have a module of this room run on a node, in its container if there is one."""
    command = [python(profile, sys.executable), "-m", f"megavlm.slurm.{module}", *words]
    return [*srun_words(profile), *inside(profile, command)]


def cpus_per_node(variables: Mapping[str, str] = os.environ) -> int | None:
    """The fewest CPUs that the job has on any of its nodes: SLURM_JOB_CPUS_PER_NODE such as 72(x2),36."""
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", variables.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return min(map(int, counts), default=None)


def rendezvous_port(job_id: int, attempt: int) -> int:
    """Another one for every attempt of every job, so that a port already taken costs one attempt, not all of them."""
    return FIRST_PORT + (job_id * 37 + attempt) % PORTS
