"""Before a stage starts it is known where its teacher's weights come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aligning_worker import model_config

from megavlm.megatron_mm.config import Stage
from megavlm.megatron_mm.training.checks import check_teacher
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, InputError


@pytest.fixture
def stage() -> Stage:
    return load_recipe("eve-mini").section("stages")["language"]


def check(stage: Stage, weights: str | None, **changes: Any) -> None:
    check_teacher("s", stage.model_copy(update=changes), model_config(teacher_weights=weights))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An imported run, as far as a check reads it."""
    run = tmp_path / "start"
    folder = run / "checkpoints" / "sft" / "step-000000"
    folder.mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps(load_recipe("eve-mini").tree))
    return folder


def test_nobody_says_where_they_are(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stage 's' has a teacher, and nothing says which weights"):
        check(stage, None)
    check(stage, "random")
    check(stage, None, after=["before"])
    with pytest.raises(InputError, match="no weights at"):
        check(stage, str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("marker", "known"),
    [
        ({}, True),
        ({"parts": ["decoder", "objectives"]}, True),
        ({"parts": ["decoder"]}, False),
        ({"parts": ["decoder", "objectives"], "lacking": ["objectives.teacher"]}, False),
    ],
)
def test_what_an_import_holds_counts(stage: Stage, checkpoint: Path, marker: dict[str, Any], known: bool) -> None:
    (checkpoint / "COMPLETE").write_text(json.dumps(marker))
    if known:
        check(stage, None, start=str(checkpoint))
    else:
        with pytest.raises(ConfigError, match="nothing says which weights"):
            check(stage, None, start=str(checkpoint))
