"""A training that is stopped after every five steps and goes on with another layout each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("layout_worker.py")


@pytest.mark.multiprocess
@pytest.mark.timeout(280)
def test_a_checkpoint_fits_any_layout(tmp_path: Path, on_ranks: Callable[..., None]) -> None:
    on_ranks(WORKER, 4, tmp_path, seconds=250)
    told = json.loads((tmp_path / "results.json").read_text())
    whole, same, other = told["whole"], told["same"], told["other"]
    assert len(whole) == len(other) == 30
    assert same == whole[:10]  # the same layout: to the bit
    for step, (ours, wanted) in enumerate(zip(other, whole, strict=True)):
        assert ours[0] == pytest.approx(wanted[0], abs=1e-4), f"step {step}"
        assert ours[1] == pytest.approx(wanted[1], rel=1e-2), f"step {step}"
    assert len({round(loss, 4) for loss, _ in whole}) > 25  # they are not all alike
