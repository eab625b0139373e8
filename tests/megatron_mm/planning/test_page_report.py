"""A run's plan beside the run, from the files of a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.planning.report import add_sections, gpu_of
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.platform.config import load_recipe
from megavlm.platform.report import Report
from megavlm.platform.runs import RunFolder


@pytest.mark.parametrize(
    ("device", "memory", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA L4", 22.0, None),
        ("cpu", None, None),
    ],
)
def test_the_gpu_of_a_device_s_name_and_memory(device: str, memory: float | None, name: str | None) -> None:
    found = gpu_of(device, memory)
    assert (found and found.name) == name


def trained(recipe: Path, folder: Path, device: str) -> RunFolder:
    """A run of two steps of 2 and 4 seconds and one of 3, with 8 GiB at most, as its files tell."""
    loaded = load_recipe(str(recipe))
    run = RunFolder.create(folder, loaded.tree, loaded.origins, ["train"])
    ensure_packs(run, StageData.of(loaded, "language"))
    run.new_attempt().event("engine", stage="language", device=device, world=2)
    for step, (seconds, memory) in enumerate([(2.0, 7.0), (4.0, 8.0), (3.0, 6.0)], 1):
        line = {"stage": "language", "step": step, "loss": 1.0, "seconds": seconds, "memory": memory, "memory_of": 79.1}
        run.append_metrics(line)
    return run


def test_planned_stands_beside_measured(recipe: Path, tmp_path: Path) -> None:
    report = Report("r")
    add_sections(trained(recipe, tmp_path / "run", "NVIDIA H100 80GB HBM3"), report)
    html = report.html()
    assert "Plan and run" in html and "2 x h100" in html
    assert ">3<" in html and ">8<" in html  # the median step, and the most memory
    assert "-100.0%" in html  # 3 seconds of a step that is planned to take next to nothing


def test_a_run_on_other_devices_is_left_out_with_a_word_and_none_adds_nothing(recipe: Path, tmp_path: Path) -> None:
    report = Report("r")
    add_sections(trained(recipe, tmp_path / "run", "cpu"), report)
    assert "Left out: it ran on cpu" in report.html()
    empty = Report("r")
    add_sections(RunFolder.create(tmp_path / "none", {"name": "r"}, {}, ["megavlm"]), empty)
    assert [section.title for section in empty.sections] == [""]
