"""Every fusion of encoders and every expert over gloo: each layout trains as one process does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fusion_layouts_worker as worker
import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def one_process() -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    results = worker.run_layout(Parallel())
    backend.shutdown()
    return results


@pytest.mark.timeout(280)
def test_every_fusion_trains_alike_on_every_layout(
    one_process: dict[str, dict[str, Any]], tmp_path: Path, on_ranks: Callable[..., None]
) -> None:
    on_ranks(Path(worker.__file__), 2, tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found) == set(worker.LAYOUTS[2])
    for layout, cases in found.items():
        for case, wanted in one_process.items():
            for step, (ours, alone) in enumerate(zip(cases[case]["steps"], wanted["steps"], strict=True)):
                place = f"{layout}, {case}, step {step}"
                assert ours[0] == pytest.approx(alone[0], abs=1e-5), place
                assert ours[1] == pytest.approx(alone[1], abs=1e-4), place
                assert ours[2:] == alone[2:], place


def test_all_that_is_trained_learns_and_nothing_else(one_process: dict[str, dict[str, Any]]) -> None:
    frozen, text = one_process["one of two experts frozen"]["moved"], one_process["text alone"]["moved"]
    assert text == ["decoder"]
    assert [part for part in frozen if part.startswith("encoder")] == ["encoder.experts.sam"]
    assert len(one_process["channels of six experts"]["moved"]) >= len(worker.EXPERTS) + 2
    losses = [result["steps"][0][0] for result in one_process.values()]
    assert len({round(loss, 5) for loss in losses}) == len(losses)
