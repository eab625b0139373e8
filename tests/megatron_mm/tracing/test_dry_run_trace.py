"""`megavlm train --dry-run --trace`: what arithmetic does not see is named with rank and place before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megavlm.megatron_mm.connectors.pixel_shuffle_mlp import PixelShuffleMLP
from megavlm.megatron_mm.decoders.qwen2 import Qwen2
from megavlm.megatron_mm.language import LanguageStage
from megavlm.megatron_mm.training.verb import main as train
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError

LAYOUT = ["stages.sft.parallel={tp: 2, pp: 2}", "--stage", "sft", "--nproc", "8", "--dry-run", "--trace"]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a trace runs without GPUs")


@pytest.fixture
def walk(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`walk("--json")`: what the verb prints of the tiny recipe at tp 2 x pp 2 on 8 processes."""

    def run(*words: str) -> str:
        assert train([str(recipe), *LAYOUT, "--out", str(tmp_path / "run"), *words]) == 0
        return capsys.readouterr().out

    return run


def refusal(walk: Any, *words: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        walk(*words)
    return caught.value


def test_a_healthy_job_passes_and_tells_every_rank_that_differs(walk: Any, recipe: Path) -> None:
    told = json.loads(walk("--json"))
    ranks = told["trace"]["sft"]
    assert [(rank["rank"], rank["pipeline_stage"]) for rank in ranks] == [(0, 0), (4, 1), (7, 1)]
    first, second, last = (rank["parameters"] for rank in ranks)
    counts = load_recipe(str(recipe)).section("model").parameter_counts()
    decoder, tower = counts["decoder"], counts["encoder"] + counts["connector"]
    # two halves of the decoder, norms on both; the tower on either stage, some of it whole on every process
    assert second == last and decoder + 2 * tower <= 2 * (first + second) <= 1.05 * decoder + 4 * tower
    assert all(sum(rank["standing"].values()) > 0 and rank["peaks"] for rank in ranks)


def test_a_connector_of_another_width_is_named_on_the_first_stage(walk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output would be merged into a sequence of another width: no two sizes of the recipe disagree."""
    build = PixelShuffleMLP.build
    monkeypatch.setattr(PixelShuffleMLP, "build", lambda self, ctx, maps, width: build(self, ctx, maps, width + 8))
    error = refusal(walk)
    assert error.where and error.where.startswith("rank 0 of 8, pipeline stage 0")
    assert "40" in error.what


def test_a_stage_that_sends_too_much_is_named_on_the_one_that_receives(
    walk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline's second stage that expects rows of another width than the first sends."""
    forward = LanguageStage.forward

    def wider(self: LanguageStage, *args: Any, **kwargs: Any) -> Any:
        if not self.pre_process:
            received = self.decoder.decoder.input_tensor
            self.decoder.set_input_tensor(torch.cat([received, received], -1))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LanguageStage, "forward", wider)
    error = refusal(walk)
    assert error.where and error.where.startswith(
        "rank 4 of 8, pipeline stage 1, LanguageStage.decoder.decoder.layers.0"
    )
    assert error.fix == "change model.decoder, or stages.sft.parallel"


def test_a_vocabulary_that_tensor_parallelism_cannot_cut_is_named(walk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the padding that makes it divide: megatron-core's own assertion, while the model is built."""
    monkeypatch.setattr(Qwen2, "padded_vocab", lambda self, tp: self.vocab + 1)
    error = refusal(walk)
    assert error.where and error.where.startswith("rank 0 of 8, pipeline stage 0, VisionLanguageModel")
    assert "divisible" in error.what


def test_it_is_asked_for_with_a_dry_run_alone(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="trains nothing"):
        train([str(recipe), "--trace"])
