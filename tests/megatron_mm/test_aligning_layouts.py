"""Patch aligning over gloo: its taps stand on several pipeline stages, and each layout trains as one process does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aligning_worker as worker
import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def one_process() -> list[list[Any]]:
    torch.set_num_threads(1)
    results = worker.run_layout(Parallel())
    backend.shutdown()
    return results


@pytest.mark.timeout(280)
@pytest.mark.parametrize("world", [2, 4])
def test_every_layout_aligns_as_one_process_does(
    one_process: list[list[Any]], tmp_path: Path, on_ranks: Callable[..., None], world: int
) -> None:
    on_ranks(Path(worker.__file__), world, world, tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(worker.LAYOUTS[world]) <= set(found)
    for layout, steps in found.items():
        for step, (ours, alone) in enumerate(zip(steps, one_process, strict=True)):
            assert ours == pytest.approx(alone, abs=1e-5), f"{layout}, step {step}"
    first, *_, last = one_process[:-1]
    assert 0 < last[1] < first[1] < 2, "it learns to see as the teacher does"
