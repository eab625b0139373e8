"""A rank's work through its stages: what is left of one when the next is built."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.training import loop
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.megatron_mm.training.work import work
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder

ALONE = ["stages.language.parallel.tp=1", "stages.sft.parallel.tp=1", "stages.sft.steps=2"]


def test_nothing_of_a_stage_is_left_when_the_next_is_built(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, saved and evaluated: model, gradients' buffers and optimizer are all gone."""
    build, optimize = loop.build_model, loop.make_optimizer
    held: list[weakref.ref[Any]] = []
    left: list[int] = []

    def counted(*words: Any) -> Any:
        left.append(sum(part() is not None for part in held))
        return build(*words)

    def watched(wrapped: Any, *words: Any) -> Any:
        made = optimize(wrapped, *words)
        held.extend(map(weakref.ref, (made, wrapped.model, *wrapped.trained, *wrapped.model.parameters())))
        return made

    monkeypatch.setattr(loop, "build_model", counted)
    monkeypatch.setattr(loop, "make_optimizer", watched)
    found = load_recipe(str(recipe), ALONE)
    run = RunFolder.create(tmp_path / "run", found.tree, found.origins, ["train"], may_change=["*"])
    for stage in ("language", "sft"):
        ensure_packs(run, StageData.of(found, stage))
    attempt = run.new_attempt()
    work(run, attempt, ["language", "sft"], Pulse(attempt, 0, 1), lambda: False)
    assert left == [0, 0] and len(held) > 50
