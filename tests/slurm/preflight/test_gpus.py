"""GPUs and links as nvidia-smi and /sys tell of them.

No GPU was there when this was written: the texts follow the documented forms of `nvidia-smi --query-gpu --format=csv`
and `nvidia-smi nvlink -s`. Where there is a GPU, the last test asks the real one.
"""

from __future__ import annotations

import shutil

import pytest

from megavlm.slurm.preflight.gpus import count_links, gpu_facts, gpus_given, infiniband_counts, lost, parse_gpus

HEALTHY = """\
0, NVIDIA H100 80GB HBM3, 550.54.15, 0, 0, 1980, 1980, 0x0000000000000000
1, NVIDIA H100 80GB HBM3, 550.54.15, 2, 5, 345, 1980, 0x0000000000000048
"""
WITHOUT_ECC = "0, NVIDIA GeForce RTX 4090, 550.54.15, [N/A], [N/A], 210, 3105, 0x0000000000000001\n"
OLD = "0, Tesla K80, 470.82.01, 0, 0, 562, 875, [Not Supported]\n"
ONE_LOST = HEALTHY.splitlines()[0] + "\n1, [GPU is lost], [GPU is lost], , , , , [Unknown Error]\n"
NO_HANDLE = "Unable to determine the device handle for GPU0000:65:00.0: Unknown Error\n"
NVLINK = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-0000-0000-0000-000000000000)
\t Link 0: 26.562 GB/s
\t Link 1: 26.562 GB/s
\t Link 2: <inactive>
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-0000-0000-0000-000000000001)
\t Link 0: 25 GB/s
"""


def test_each_gpu_is_one_record_of_numbers():
    first, second = parse_gpus(HEALTHY)
    assert first["name"] == "NVIDIA H100 80GB HBM3" and first["driver"] == "550.54.15"
    assert first["ecc_volatile"] == 0 and first["sm_clock_max"] == 1980
    assert second["ecc_volatile"] == 2 and second["ecc_aggregate"] == 5 and second["throttle"] == 0x48


@pytest.mark.parametrize(("text", "field"), [(WITHOUT_ECC, "ecc_volatile"), (OLD, "throttle")])
def test_what_a_gpu_does_not_tell_is_unknown(text, field):
    (gpu,) = parse_gpus(text)
    assert gpu[field] is None and gpu["sm_clock"] > 0


@pytest.mark.parametrize(("text", "count"), [(ONE_LOST, 1), (HEALTHY + NO_HANDLE, 2), ("", 0)])
def test_a_lost_gpu_does_not_count_and_is_told(text, count):
    assert len(parse_gpus(text)) == count
    assert bool(lost(text)) is bool(text)


def test_a_healthy_text_tells_of_no_loss():
    assert lost(HEALTHY) is None


def test_active_links_are_counted():
    assert count_links(NVLINK) == 3


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 3),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"SLURM_GPUS_ON_NODE": "8"}, 8),
        ({}, None),
    ],
)
def test_what_slurm_gave(environment, count):
    assert gpus_given(environment) == count


def test_infiniband_ports_that_are_up(tmp_path):
    for card, state, rate in (("mlx5_0", "4: ACTIVE", "400 Gb/sec (4X NDR)"), ("mlx5_1", "1: DOWN", "10 Gb/sec (4X)")):
        port = tmp_path / card / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
        (port / "rate").write_text(rate + "\n")
    assert infiniband_counts(tmp_path) == {"infiniband_ports": 1, "infiniband_gbit": 400.0}
    assert infiniband_counts(tmp_path / "none") == {}


def test_a_program_that_fails_is_told_with_its_words(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        '#!/bin/sh\necho "NVIDIA-SMI has failed because it couldn\'t communicate with the driver."\nexit 9\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    told = gpu_facts()
    assert told["gpus"] == [] and "couldn't communicate" in told["gpu_error"]


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no nvidia-smi here")
def test_a_real_gpu_answers():
    told = gpu_facts()
    assert told["gpu_error"] is None and told["counts"]["gpus"] >= 1
    assert all(gpu["driver"] and gpu["sm_clock_max"] for gpu in told["gpus"])
