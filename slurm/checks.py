"""What can be known before queueing: the limits, the run folder, the disk. Each refusal names the value and a fix."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megavlm.platform.checkpoint_size import OPTIMIZER_BYTES
from megavlm.platform.checkpoint_size import checkpoint_bytes as one_checkpoint
from megavlm.platform.errors import ConfigError, did_you_mean

from .partitions import Partition
from .profile import ClusterProfile

SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|KEY|APIKEY)(_|$)", re.IGNORECASE)
KEPT_CHECKPOINTS = 2  # of a stage, at the moment when the newer one is complete and the older one not yet gone


def check_limits(profile: ClusterProfile, nodes: int, spares: int) -> None:
    """What the profile itself says, without a question to Slurm; raises ConfigError."""
    limits, wanted = profile.limits, nodes + spares
    if nodes < 1 or spares < 0:
        raise ConfigError(f"{nodes} nodes and {spares} spares cannot run", where="--nodes", fix="at least one node")
    if limits.nodes is not None and wanted > limits.nodes:
        fix = f"at most {limits.nodes} nodes, spares included, or raise limits.nodes in the profile"
        raise ConfigError(f"{wanted} nodes are more than limits.nodes {limits.nodes}", where="--nodes", fix=fix)
    if limits.minutes is not None and profile.minutes > limits.minutes:
        fix = f"--minutes {limits.minutes}, or raise limits.minutes in the profile"
        raise ConfigError(
            f"{profile.minutes} minutes are more than limits.minutes {limits.minutes}", where="--minutes", fix=fix
        )
    if profile.save_seconds >= profile.minutes * 60:
        fix = f"--minutes {profile.save_seconds // 60 + 2} or more, or a smaller save_seconds in the profile"
        what = f"of {profile.minutes} minutes nothing is left before the save, save_seconds {profile.save_seconds}"
        raise ConfigError(what, where="save_seconds", fix=fix)
    check_secrets([*profile.environment, *profile.pass_environment])


def check_secrets(names: Iterable[str]) -> None:
    """Raises ConfigError for a variable that is named like a secret: scripts and run folders are read by many."""
    for name in names:
        if SECRET.search(name):
            fix = "have a set-up line read it from a file that only you can read"
            raise ConfigError(f"{name} looks like a secret, and would stand in the script", where=name, fix=fix)


def chosen_partition(profile: ClusterProfile, partitions: Mapping[str, Partition]) -> Partition:
    """The partition a job will go to; raises ConfigError when there is none of this name."""
    if profile.partition is None:
        default = next((partition for partition in partitions.values() if partition.default), None)
        if default is None:
            fix = f"--partition, one of: {', '.join(sorted(partitions))}"
            raise ConfigError("no partition is named, and this cluster has no default one", where="partition", fix=fix)
        return default
    if profile.partition not in partitions:
        fix = did_you_mean(profile.partition, partitions)
        raise ConfigError(f"no partition '{profile.partition}' on this cluster", where="partition", fix=fix)
    return partitions[profile.partition]


def check_partition(profile: ClusterProfile, nodes: int, spares: int, partition: Partition) -> None:
    """Whether the partition can ever start such a job; raises ConfigError."""
    name, wanted, gpus = partition.name, nodes + spares, profile.gpus_per_node
    if gpus > partition.gpus:
        fix = f"--gpus-per-node {partition.gpus}, or a partition with larger nodes"
        what = f"{gpus} GPUs per node; a node of partition '{name}' has at most {partition.gpus}"
        raise ConfigError(what, where="gpus_per_node", fix=fix)
    cpus = (profile.cpus_per_task or 1) * (profile.processes if profile.cpus_per_task else 1)
    largest = max((each.cpus for each in partition.nodes if each.gpus >= gpus), default=0)
    if cpus > largest:
        what = f"{cpus} CPUs per node ({profile.cpus_per_task} x {profile.processes} processes)"
        fix = f"set cpus_per_task to at most {largest // profile.processes} in the profile"
        raise ConfigError(f"{what}; a node of '{name}' has at most {largest}", where="cpus_per_task", fix=fix)
    most = min(partition.having(gpus, cpus), partition.most_nodes or wanted)
    if wanted > most:
        what = f"{nodes} nodes and {spares} spares" if spares else f"{nodes} nodes"
        fix = f"at most {most} nodes, spares included, or another partition"
        raise ConfigError(f"{what}; partition '{name}' gives a job at most {most} such nodes", where="--nodes", fix=fix)
    if partition.minutes is not None and profile.minutes > partition.minutes:
        what = f"{profile.minutes} minutes are more than the {partition.minutes} that partition '{name}' allows"
        fix = f"--minutes {partition.minutes}, or another partition; what does not fit is saved and goes on by itself"
        raise ConfigError(what, where="--minutes", fix=fix)


def check_image(profile: ClusterProfile) -> None:
    """Raises ConfigError when the container's image is a file and is not there."""
    container = profile.container
    image = str(container.image)
    is_file = image.startswith(("/", "./", "../")) or image.endswith((".sif", ".sqsh"))
    if container.kind != "none" and is_file and "://" not in image and not Path(image).is_file():
        fix = "build it (slurm/containers), or correct container.image in the profile"
        raise ConfigError(f"no container image {image}", where="container.image", fix=fix)


def check_folder(run: Path) -> None:
    """Raises ConfigError unless the run folder, or the first folder above it that is there, can be written to."""
    there = nearest_existing(run)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is no folder" if not there.is_dir() else "cannot be written to"
        raise ConfigError(f"{there} {why}", where=f"run folder {run}", fix="give another one with --out")


def check_disk(run: Path, stages: Iterable[Mapping[str, Any]]) -> str:
    """Whether the checkpoints of these stages (of `train --dry-run --json`) fit; a line that tells the figures.

    Raises ConfigError with the formula when they do not.
    """
    needed = sum(checkpoint_bytes(stage) for stage in stages)
    free = shutil.disk_usage(nearest_existing(run)).free
    formula = (
        f"{KEPT_CHECKPOINTS} checkpoints per stage of {OPTIMIZER_BYTES} bytes per trained parameter (fp32 master, two "
        "moments) and 4 (fp32) or 2 bytes per parameter (the model)"
    )
    if needed > free:
        what = f"{_gigabytes(free)} are free, and the checkpoints take {_gigabytes(needed)}: {formula}"
        raise ConfigError(what, where=f"run folder {run}", fix="make room there, or give another folder with --out")
    return f"disk: {_gigabytes(free)} free, {_gigabytes(needed)} for {formula}"


def checkpoint_bytes(stage: Mapping[str, Any]) -> int:
    """Bytes that one stage's checkpoints take together."""
    if stage.get("steps") == 0:  # a gate: it trains nothing
        return 0
    return KEPT_CHECKPOINTS * one_checkpoint(stage["parameters"], stage["trained_parameters"], stage["precision"])


def nearest_existing(path: Path) -> Path:
    """`path`, or the first folder above it that is there; what we may not see into counts as not there."""
    return next(each for each in (path, *path.absolute().parents) if os.path.exists(each))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB"
