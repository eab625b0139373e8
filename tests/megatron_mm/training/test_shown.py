"""What whoever started a training sees of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.training import shown
from megavlm.platform.config import load_recipe


def step(number: int, **more: Any) -> dict[str, Any]:
    line = {"stage": "language", "step": number, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "waited": 0.001}
    return line | more


def test_a_line_a_second_and_one_for_every_step_to_look_at(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEGAVLM_QUIET", raising=False)
    stages = load_recipe(str(recipe), ["stages.language.steps=9"]).section("stages")
    clock = iter([0.5, 0.6, 0.7, 1.4, 1.6, 1.8, 1.9, 2.0, 2.1])
    monkeypatch.setattr(shown.time, "monotonic", lambda: 100 + next(clock))
    display = shown.Shown(stages)
    for number in range(1, 10):
        strange = {3: {"updated": False, "loss": None}, 7: {"slowness": 3.0, "slowest_rank": 5}}
        display.update(step(number, **strange.get(number, {})))
    lines = [line for line in capsys.readouterr().err.splitlines() if "loss" in line]
    assert [line.split()[3].partition("/")[0] for line in lines] == ["1", "3", "6", "7", "9"], lines
    assert "update skipped" in lines[1] and "rank 5 3.00x slow" in lines[3]
    assert all(line.startswith("train language: step ") for line in lines)
