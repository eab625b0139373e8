"""Weights of each modality's own over gloo: every layout trains as one process does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import routed_worker as worker
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel

pytestmark = pytest.mark.multiprocess


@pytest.mark.timeout(280)
def test_every_layout_trains_alike(tmp_path: Path, on_ranks: Callable[..., None]) -> None:
    torch.set_num_threads(1)
    alone = worker.run_layout(Parallel())
    backend.shutdown()
    on_ranks(Path(worker.__file__), 2, tmp_path / "results.json")
    told = json.loads((tmp_path / "results.json").read_text())
    assert all(told["copied"].values()) and len(told["copied"]) == 2
    found = told["layouts"]
    assert set(found) == set(worker.LAYOUTS[2])
    for layout, cases in found.items():
        for case, wanted in alone.items():
            place = f"{layout}, {case}"
            for ours, one in zip(cases[case]["steps"], wanted["steps"], strict=True):
                assert ours[:2] == pytest.approx(one[:2], abs=1e-5), place
                assert ours[2:] == one[2:], place
            assert cases[case]["alike before"], place
            assert cases[case]["alike after"] == (case == "text alone"), place  # which taught them nothing
            if "logits" in cases[case]:
                assert cases[case]["logits"] == pytest.approx(wanted["logits"], abs=1e-3), place
