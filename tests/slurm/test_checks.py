"""What is known before queueing, against clusters written down as Slurm prints them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megavlm.platform.errors import ConfigError
from megavlm.slurm import checks, partitions
from megavlm.slurm.partitions import gpu_count, minutes
from megavlm.slurm.profile import ClusterProfile

SCONTROL = (
    "PartitionName=batch AllowGroups=ALL Default=YES MaxNodes=6 MaxTime=1-12:30:00 PreemptMode=OFF TotalNodes=12\n"
    "PartitionName=scavenge AllowGroups=ALL Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED PreemptMode=GANG,CANCEL\n"
)
SINFO = "batch|8|112|gpu:h100:8(S:0-1),nvme:1\nbatch|4|64+|gpu:4\nscavenge|20|32|(null)\n"


def asked(**keys) -> tuple[ClusterProfile, partitions.Partition]:
    profile = ClusterProfile(name="here", **keys)
    return profile, checks.chosen_partition(profile, partitions.parse(SCONTROL, SINFO))


def test_partitions_are_read_as_slurm_prints_them():
    found = partitions.parse(SCONTROL, SINFO)
    batch, scavenge = found["batch"], found["scavenge"]
    assert (batch.default, batch.minutes, batch.most_nodes, batch.gpus) == (True, 36 * 60 + 30, 6, 8)
    assert (scavenge.default, scavenge.minutes, scavenge.most_nodes, scavenge.gpus) == (False, None, None, 0)
    assert (batch.having(8, 1), batch.having(1, 1), batch.having(8, 113), batch.having(4, 64)) == (8, 12, 0, 12)
    assert scavenge.cancels and not batch.cancels


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0),
        ("gpu:8", 8),
        ("gpu:h100:4(S:0-1)", 4),
        ("gpu:a100:2(S:0,2),gpu:h100:4,nvme:1", 6),
        ("mps:400,gpu:1", 1),
        ("gpu:tesla_v100-sxm2:4(IDX:0-3)", 4),
        ("gpu", 0),
    ],
)
def test_gpus_of_a_node(gres, count):
    assert gpu_count(gres) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("00:10:00", 10), ("1-00:00:30", 1440), ("UNLIMITED", None), ("NONE", None), ("100:00:00", 6000), ("", None)],
)
def test_times_of_slurm(text, count):
    assert minutes(text) == count


@pytest.mark.parametrize(
    ("keys", "nodes", "spares", "value", "fix"),
    [
        ({"gpus_per_node": 9}, 1, 0, "9 GPUs per node", "--gpus-per-node 8"),
        ({"partition": "scavenge", "gpus_per_node": 1}, 1, 0, "1 GPUs per node", "--gpus-per-node 0"),
        ({"gpus_per_node": 8}, 6, 1, "6 nodes and 1 spares", "at most 6 nodes"),
        ({"partition": "scavenge"}, 21, 0, "21 nodes", "at most 20 nodes"),
        ({"minutes": 2191}, 1, 0, "2191 minutes", "--minutes 2190"),
        ({"gpus_per_node": 8, "cpus_per_task": 15}, 1, 0, "120 CPUs per node", "at most 14"),
    ],
)
def test_what_a_partition_can_never_give_is_refused_with_the_value_and_a_fix(keys, nodes, spares, value, fix):
    profile, partition = asked(**keys)
    with pytest.raises(ConfigError) as refused:
        checks.check_partition(profile, nodes, spares, partition)
    assert value in refused.value.what and fix in refused.value.fix


def test_what_it_can_give_passes():
    profile, partition = asked(gpus_per_node=8, cpus_per_task=14, minutes=2190)
    assert partition.name == "batch"
    checks.check_partition(profile, 5, 1, partition)


def test_an_unknown_partition_is_told_the_nearest_one():
    with pytest.raises(ConfigError, match="'batsch'") as refused:
        asked(partition="batsch")
    assert "'batch'" in refused.value.fix


@pytest.mark.parametrize(
    ("keys", "nodes", "spares", "value"),
    [
        ({}, 0, 0, "0 nodes"),
        ({}, 1, -1, "-1 spares"),
        ({"limits": {"nodes": 3}}, 3, 1, "4 nodes"),
        ({"limits": {"minutes": 30}, "minutes": 31}, 1, 0, "31 minutes"),
        ({"minutes": 2, "save_seconds": 120}, 1, 0, "save_seconds 120"),
        ({"environment": {"WANDB_API_KEY": "x"}}, 1, 0, "WANDB_API_KEY"),
        ({"pass_environment": ["HF_TOKEN"]}, 1, 0, "HF_TOKEN"),
        ({"pass_environment": ["aws_secret_access_key"]}, 1, 0, "aws_secret_access_key"),
    ],
)
def test_a_profiles_own_limits(keys, nodes, spares, value):
    with pytest.raises(ConfigError) as refused:
        checks.check_limits(ClusterProfile(name="here", **keys), nodes, spares)
    assert value in refused.value.what and refused.value.fix


def test_names_that_only_look_like_secrets_at_a_glance_pass():
    checks.check_secrets(["TOKENIZERS_PARALLELISM", "NCCL_IB_PKEY", "KEYBOARD", "OMP_NUM_THREADS", "MONKEY_ISLAND"])


def test_the_disk_has_to_hold_two_checkpoints_of_each_stage(tmp_path):
    stage = {"parameters": 100, "trained_parameters": 10, "precision": "fp32"}
    assert checks.checkpoint_bytes(stage) == 2 * (100 * 4 + 10 * 12)
    assert checks.checkpoint_bytes(stage | {"precision": "fp8"}) == 2 * (100 * 2 + 10 * 12)
    assert "GB free" in checks.check_disk(tmp_path / "a" / "run", [stage])
    larger = stage | {"parameters": shutil.disk_usage(tmp_path).total}
    with pytest.raises(ConfigError, match=r"^[\d.e+,]+ GB are free, .* take [\d.e+,]+ GB: .*fp32 master") as refused:
        checks.check_disk(tmp_path / "a" / "run", [larger])
    assert "--out" in refused.value.fix


def test_the_run_folder_has_to_be_one(tmp_path):
    checks.check_folder(tmp_path / "not" / "there" / "yet")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is no folder"):
        checks.check_folder(tmp_path / "file" / "run")


def test_the_run_folder_has_to_be_writable():
    code = (
        "import os; from pathlib import Path; from megavlm.slurm.checks import check_folder\n"
        "os.geteuid() == 0 and os.setuid(65534)\n"  # root may write anywhere
        "check_folder(Path('/usr/a/b'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ConfigError: /usr cannot be written to" in done.stderr


def test_an_image_that_is_a_file_has_to_be_there(tmp_path):
    def check(image: Path | str) -> None:
        checks.check_image(ClusterProfile(name="here", container={"kind": "pyxis", "image": str(image)}))

    (tmp_path / "there.sqsh").touch()
    for image in (tmp_path / "there.sqsh", "nvcr.io#nvidia/pytorch:25.01-py3", "docker://a/b.sif"):
        check(image)
    for image in (tmp_path / "gone.sqsh", "gone.sif", "./gone"):
        with pytest.raises(ConfigError, match="gone"):
            check(image)
