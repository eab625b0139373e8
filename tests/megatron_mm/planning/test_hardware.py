"""GPUs by name, against figures of NVIDIA's data sheets."""

from __future__ import annotations

import pytest

from megavlm.megatron_mm.planning.hardware import find_gpu, gpus
from megavlm.megatron_mm.training.flops import peak_tflops
from megavlm.platform.errors import ConfigError

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "gib", "tbytes", "tflops", "link", "network"),
    [
        ("a100-40", 40, 1.555, 312, 300, 25),
        ("a100-80", 80, 2.039, 312, 300, 25),
        ("h100", 80, 3.35, 989.4, 450, 50),
        ("h200", 141, 4.8, 989.4, 450, 50),
        ("b200", 180, 8.0, 2250, 900, 50),
    ],
)
def test_a_gpu_is_what_its_data_sheet_says(name, gib, tbytes, tflops, link, network):
    gpu = find_gpu(name)
    assert gib - 4 <= gpu.memory / GIB < gib
    assert gpu.bandwidth == pytest.approx(tbytes * 1e12)
    assert gpu.bf16 == pytest.approx(tflops * 1e12)
    assert (gpu.link, gpu.network) == (link * 1e9, network * 1e9)


def test_peaks_are_those_that_training_reports_against():
    for name, device in {"a100-80": "NVIDIA A100-SXM4-80GB", "h100": "NVIDIA H100 80GB HBM3", "b200": "B200"}.items():
        assert find_gpu(name).bf16 == peak_tflops(device) * 1e12


def test_fp8_begins_with_hopper():
    assert [name for name, gpu in gpus().items() if gpu.fp8 is None] == ["a100-40", "a100-80", "a800-80"]
    assert find_gpu("h100").fp8 == pytest.approx(1978.9e12, rel=1e-3)


def test_a_name_that_is_none_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        find_gpu("h10")
    assert "h100" in str(caught.value.fix)
