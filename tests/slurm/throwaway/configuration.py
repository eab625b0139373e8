"""The configuration files of a throw-away Slurm: quick to notice, quick to give up, and all below one folder."""

from __future__ import annotations

import dataclasses
import getpass
import os
import socket
import stat
from pathlib import Path

GPUS, CPUS, MEMORY = 8, 8, 8000  # claimed by each node; memory in MB
PARTITIONS = (
    "main Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE",
    "short PriorityTier=10 PreemptMode=OFF MaxTime=00:10:00",
    "low PriorityTier=1 PreemptMode=REQUEUE GraceTime=5 MaxTime=INFINITE",
    "lowcancel PriorityTier=1 PreemptMode=CANCEL GraceTime=5 MaxTime=INFINITE",
)
SETTINGS = """\
ClusterName=throwaway
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
GresTypes=gpu
EnforcePartLimits=ALL
ReturnToService=2
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=3,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize=101
KillWait=3
MinJobAge=3600
SlurmdTimeout=9
SlurmctldTimeout=30
MessageTimeout=5
InactiveLimit=0
CompleteWait=0
"""
# cred_expire: seconds a requeued job must wait before it may start again; 5 is the least that Slurm takes.
PLACES = """\
SlurmctldHost={host}({address})
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/spool/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
"""


@dataclasses.dataclass(frozen=True)
class NodePlace:
    """Where the daemon of one node is reached."""

    name: str
    address: str
    host: str  # the name that the machine, or the namespace, calls itself
    port: int


def write_configuration(folder: Path, address: str, port: int, nodes: list[NodePlace], further: str) -> None:
    """slurm.conf, gres.conf and cgroup.conf into `folder`; the controller listens at `address`:`port`."""
    for name in ("state", "spool", "log", "dev"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    places = PLACES.format(
        folder=folder,
        address=address,
        port=port,
        node_port=nodes[0].port,
        user=getpass.getuser(),
        host=host_name(),
    )
    lines = [f"NodeName={n.name} NodeAddr={n.address} NodeHostname={n.host} Port={n.port} {_size()}" for n in nodes]
    lines += [f"PartitionName={partition} Nodes=ALL State=UP" for partition in PARTITIONS]
    (folder / "slurm.conf").write_text(SETTINGS + places + further + "\n".join(lines) + "\n")
    (folder / "gres.conf").write_text(f"Name=gpu File={_devices(folder / 'dev')}[0-{GPUS - 1}]\n")
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")


def host_name() -> str:
    """What this machine calls itself, without its domain."""
    return socket.gethostname().partition(".")[0]


def _size() -> str:
    return f"CPUs={CPUS} RealMemory={MEMORY} Gres=gpu:{GPUS}"


def _devices(folder: Path) -> str:
    """The path, without its number, of as many devices as a node has GPUs.

    Slurm gives out device files, one per GPU: root makes some that are like /dev/null; others name terminals that
    nobody opens.
    """
    if os.geteuid() != 0:
        return "/dev/tty"
    for number in range(GPUS):
        os.mknod(folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    return str(folder / "gpu")
