"""What `submit` refuses because `megavlm plan` proves it impossible: with the real verb, without a Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megavlm.platform.errors import ConfigError
from megavlm.slurm.foresight import check_plan
from megavlm.slurm.profile import ClusterProfile
from megavlm.slurm.submit import main

SFT = ["sft"]


def cluster(gpus: int = 8, gpu: str | None = "h100") -> ClusterProfile:
    return ClusterProfile(name="here", gpus_per_node=gpus, gpu=gpu)


def test_what_cannot_be_asked_is_said_and_without_gpus_nothing_is():
    assert check_plan(cluster(0), "no-such-recipe", [], SFT, nodes=1) == []
    (told,) = check_plan(cluster(gpu=None), "no-such-recipe", [], SFT, nodes=1)
    assert "memory is unchecked" in told and "'here'" in told and "`gpu`" in told


def test_the_papers_layout_passes():
    assert check_plan(cluster(), "nvlm-d-72b", [], SFT, nodes=16) == []


@pytest.mark.parametrize(
    ("gpus", "gpu", "nodes", "overrides", "value", "where"),
    [
        # 79.4 billion parameters of 2 bytes are 148 GiB, before any gradient
        (8, "h100", 1, ["stages.sft.parallel={tp: 1, pp: 1}"], "weights, gradients and optimizer", "sft.parallel"),
        (4, "h100", 32, [], "tp 8 does not stay within machines of 4", "parallel.tp"),
        (8, "a100-80", 16, ["stages.sft.precision=fp8"], "FP8", "precision"),
        (8, "h10", 16, [], "no GPU 'h10'", "--gpu"),
    ],
)
def test_what_is_proven_impossible_is_refused_with_the_value_the_place_and_a_fix(
    gpus, gpu, nodes, overrides, value, where
):
    with pytest.raises(ConfigError) as refused:
        check_plan(cluster(gpus, gpu), "nvlm-d-72b", overrides, SFT, nodes)
    assert value in refused.value.what and where in refused.value.where and refused.value.fix


def test_what_is_merely_likely_is_told():
    """A 7B's states fit a GPU of 80 GB split over two (68 GiB); activations of 32,768 positions beside them do not."""
    long = ["stages.sft.mixture.sequence_length=32768", "stages.sft.recompute=none", "stages.sft.parallel.tp=4"]
    (told,) = check_plan(cluster(), "nvlm-d-7b", long, SFT, nodes=1)
    assert told.startswith("stage sft may not do here") and "recompute=full" in told


def test_gpus_that_would_idle_are_told_of():
    (told,) = check_plan(cluster(gpus=8), "nvlm-d-mini", [], ["language"], nodes=1)
    assert told.startswith("stage language may not do here: 4 replicas") and "would idle" in told


def test_nothing_is_queued_that_cannot_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    monkeypatch.chdir(tmp_path)
    profile = tmp_path / "here.yaml"
    profile.write_text(yaml.safe_dump({"gpus_per_node": 8, "gpu": "a100-40"}))
    huge = ["model.decoder.layers=96", "model.decoder.hidden=12288", "model.decoder.ffn=49152"]
    huge += ["stages.language.mixture.packs_per_batch=8"]
    words = ["nvlm-d-mini", *huge, "--cluster", str(profile), "--stage", "language", "--dry-run"]
    with pytest.raises(ConfigError, match="weights, gradients and optimizer of stage 'language'"):
        main(words)
    assert [path.name for path in tmp_path.iterdir()] == ["here.yaml"]
