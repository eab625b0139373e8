"""The plan, the schedule and the outcome: arithmetic, without torch."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.config import Optimizer
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.training.lock import exclusive
from megavlm.megatron_mm.training.outcome import outcome
from megavlm.megatron_mm.training.packs import ensure_packs, packs_path
from megavlm.megatron_mm.training.plan import make_plan, visible_gpus
from megavlm.megatron_mm.training.schedule import learning_rate
from megavlm.megatron_mm.training.stages import mark_stage_finished, unfinished
from megavlm.megatron_mm.training.verb import main as train
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, MegaVLMError
from megavlm.platform.runs import RunFolder


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_a_dry_run_imports_no_torch(recipe: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from megavlm.platform.cli import main;"
        f"main(['train', {str(recipe)!r}, '--dry-run', '--json', '--out', {str(tmp_path / 'run')!r}]);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["world"] == 2 and [stage["name"] for stage in plan["stages"]] == ["language", "sft", "gate"]
    assert not (tmp_path / "run").exists()


def test_the_plan_s_figures(recipe: Path) -> None:
    loaded = load_recipe(str(recipe))
    plan = make_plan(loaded, nproc=4)
    language, sft, gate = plan.stages
    assert (plan.world, plan.nodes, plan.nproc) == (4, 1, 4)
    counts = loaded.section("model").parameter_counts()
    assert language.parameters == sft.parameters == counts["total"]
    assert language.trained_parameters == counts["decoder"]
    assert sft.trained_parameters == counts["total"] - counts["injection"]
    assert sft.tokens == 40 * 2 * 128
    assert (sft.tp, sft.pp, sft.dp, sft.micro_batches) == (2, 1, 2, 1)
    assert (gate.steps, gate.trained_parameters, gate.tp, gate.dp) == (0, 0, 2, 2)


@pytest.mark.parametrize(
    ("overrides", "nproc", "said"),
    [
        (["stages.sft.parallel.tp=2"], 3, "3 processes do not divide by tp 2"),
        (["stages.sft.parallel.cp=2"], 2, "2 processes do not divide by tp 2 x pp 1 x cp 2 = 4"),
        (
            ["stages.language.mixture.packs_per_batch=3", "stages.language.parallel.tp=1", "stages.sft.parallel.tp=3"],
            3,
            "heads 4 .*do not divide by parallel.tp 3",
        ),
        (["stages.sft.parallel={tp: 1, pp: 4}"], 4, "decoder.layers 2: 2 are left for 4 other pipeline stages"),
        (
            ["stages.sft.parallel={tp: 1, pp: 2, vp: 2}"],
            2,
            "layers of a pipeline stage 1 does not divide by parallel.vp",
        ),
        (["stages.sft.parallel={tp: 1, vp: 2}"], 2, "vp 2 interleaves pipeline stages, and pp is 1"),
        (["stages.sft.parallel={tp: 1, pp: 2, first_stage_layers: 2}"], 2, "0 are left for 1 other pipeline stages"),
        (["stages.sft.parallel={tp: 1, last_stage_layers: 1}"], 2, "there is one pipeline stage"),
        (
            ["stages.sft.parallel={tp: 1, cp: 2}", "stages.sft.mixture.sequence_length=126"],
            2,
            "mixture.sequence_length 126 does not divide by 2 x parallel.cp 4",
        ),
        (
            ["stages.sft.mixture.sequence_length=127", "stages.sft.parallel.sequence_parallel=true"],
            2,
            "mixture.sequence_length 127 does not divide by parallel.tp 2",
        ),
        (["stages.sft.parallel={tp: 2, overlap: true}"], 2, r"2 process\(es\) hold one copy of the weights"),
        (["stages.sft.precision=fp8"], 2, "fp8 needs Transformer Engine"),
        (["stages.sft.train=[injection]"], 2, "holds no parameter"),
        (["model.objectives=[next_token, next_token]"], 2, "none, one twice"),
        (["model.decoder.max_positions=64"], 2, "sequence_length 128 is more than the decoder's max_positions 64"),
        (["model.decoder.vocab=511"], 2, "has 512 tokens and the decoder 511 rows"),
        (["data.sets.text=/nowhere"], 2, "data set 'text' is not at /nowhere"),
        (["stages.sft.mixture.weights.txt=1"], 2, "unknown data set 'txt'"),
        (["data.tokenizer=maxi"], 2, "no tokenizer 'maxi'"),
        (["stages.sft.blind=[charts]"], 2, "suite 'charts' is blind and not evaluated"),
        (["stages.gate.gate.suites=[mmlu]"], 2, "no stage of this run names a set for suite 'mmlu'"),
    ],
)
def test_what_cannot_be_is_refused(recipe: Path, overrides: list[str], nproc: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        make_plan(load_recipe(str(recipe), overrides), nproc=nproc)
    assert raised.value.where and raised.value.fix


@pytest.mark.parametrize(("layout", "nproc"), [("{tp: 1, overlap: true}", 2), ("{overlap: true}", 4),
                                               ("{tp: 1, cp: 2, overlap: true}", 2)])  # fmt: skip
def test_several_copies_of_the_weights_may_overlap(recipe: Path, layout: str, nproc: int) -> None:
    words = ["stages.language.parallel.tp=1", f"stages.sft.parallel={layout}"]
    assert make_plan(load_recipe(str(recipe), words), nproc=nproc).world == nproc


def test_an_unknown_stage_gets_the_nearest(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="unknown stage 'stf'") as raised:
        make_plan(load_recipe(str(recipe)), stage="stf")
    assert "sft" in str(raised.value)


def test_missing_demo_data_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEGAVLM_DEMO_DATA", str(tmp_path / "none"))
    plan = make_plan(load_recipe("nvlm-d-mini"))
    assert any("will be made at" in note and str(tmp_path / "none") in note for note in plan.notes)


def test_the_world_grows_with_the_gpus(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    assert visible_gpus() == 5
    assert make_plan(load_recipe(str(recipe))).world == 4  # the largest multiple of tp 2


def test_stages_of_unequal_layout_share_one_world(recipe: Path) -> None:
    loaded = load_recipe(str(recipe), ["stages.language.parallel.tp=1"])
    plan = make_plan(loaded)
    assert plan.world == 2 and [stage.dp for stage in plan.stages] == [2, 1, 1]


SCHEDULES = st.sampled_from(["cosine", "linear", "constant", "wsd"])


@given(st.integers(0, 99), st.integers(1, 100), st.integers(0, 20), SCHEDULES)
def test_the_rate_stays_between_its_bounds(step: int, steps: int, warmup: int, schedule: str) -> None:
    decay = 7 if schedule == "wsd" else 0
    options = Optimizer(lr=1.0, min_lr=0.1, warmup_steps=warmup, schedule=schedule, decay_steps=decay)
    step = min(step, steps - 1)
    rate = learning_rate(step, options, steps)
    assert 0 < rate <= 1.0
    if step >= warmup:
        assert rate >= 0.1 - 1e-12


def test_the_rate_at_known_places() -> None:
    options = Optimizer(lr=1.0, min_lr=0.2, warmup_steps=4)
    assert [learning_rate(k, options, 25) for k in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(14, options, 25) == pytest.approx(0.2 + 0.8 / 2)  # half way from update 4 to 24
    assert learning_rate(24, options, 25) == pytest.approx(0.2)
    quarter = learning_rate(9, options, 25)
    assert quarter == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> RunFolder:
    loaded = load_recipe(str(recipe))
    return RunFolder.create(tmp_path / "run", loaded.tree, loaded.origins, ["megavlm"])


def test_stages_are_done_in_order_and_once(recipe: Path, run: RunFolder) -> None:
    stages = load_recipe(str(recipe)).section("stages")
    assert unfinished(run, stages) == ["language", "sft", "gate"]
    with pytest.raises(ConfigError, match="comes after 'language', which is not finished"):
        unfinished(run, stages, "sft")
    mark_stage_finished(run, "language", step=4)
    assert unfinished(run, stages) == ["sft", "gate"] and unfinished(run, stages, "sft") == ["sft"]
    mark_stage_finished(run, "sft", step=40)
    assert unfinished(run, stages) == ["gate"]
    mark_stage_finished(run, "gate", step=0)
    assert unfinished(run, stages) == []


def test_an_optional_stage_runs_only_when_named(recipe: Path, run: RunFolder) -> None:
    stages = load_recipe(str(recipe), ["stages.sft.optional=true"]).section("stages")
    assert unfinished(run, stages) == ["language"]
    mark_stage_finished(run, "language", step=4)
    assert unfinished(run, stages) == [] and unfinished(run, stages, "sft") == ["sft"]


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 3), ("undecided", 5)])
def test_the_gate_decides_the_exit_code(recipe: Path, run: RunFolder, verdict: str, code: int) -> None:
    stages = load_recipe(str(recipe)).section("stages")
    mark_stage_finished(run, "language", step=4)
    run.path("gate").mkdir()
    run.path("gate", "gate.json").write_text(json.dumps({"verdict": verdict, "drop": 0.1}))
    mark_stage_finished(run, "sft", step=40)
    assert outcome(run, stages).exit_code == 4  # the gate is not finished
    mark_stage_finished(run, "gate", step=0)
    assert outcome(run, stages).exit_code == code and outcome(run, stages, "sft").exit_code == 0


def test_figures_come_from_the_last_line_of_each_step(recipe: Path, run: RunFolder) -> None:
    for step, loss in [(1, 5.0), (2, 4.0), (3, 3.5), (2, 4.5), (3, 3.0)]:  # resumed after step 1
        run.append_metrics({"stage": "sft", "step": step, "loss": loss, "tokens": 100, "seconds": 0.5})
    told = outcome(run, load_recipe(str(recipe)).section("stages")).stages["sft"]
    assert (told["steps"], told["first_loss"], told["last_loss"]) == (3, 5.0, 3.0)
    assert told["tokens_per_second"] == 200


def test_a_manifest_of_another_configuration_is_refused_before_anything_starts(recipe: Path, run: RunFolder) -> None:
    ensure_packs(run, StageData.of(load_recipe(str(recipe)), "language"))
    assert packs_path(run.root, "language").exists()
    with pytest.raises(ConfigError, match="made for another configuration: template"):
        train([str(recipe), "data.template.system=Answer.", "--out", str(run.root), "--dry-run"])
    with pytest.raises(ConfigError, match="another 'stages.sft.optimizer.lr'"):
        train([str(recipe), "stages.sft.optimizer.lr=1", "--out", str(run.root)])


def test_missing_demo_data_is_made_first_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A place where nothing can be made: whether the step runs is to be seen, without the minutes that it takes.
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "data"
    monkeypatch.setenv("MEGAVLM_DEMO_DATA", str(folder))
    with pytest.raises(MegaVLMError, match="making the demo's data failed with exit code") as raised:
        train(["nvlm-d-mini", "--out", str(tmp_path / "run")])
    assert f"demo data not found at {folder}: making it first" in capfd.readouterr().err
    assert str(folder) in str(raised.value) and not (tmp_path / "run").exists()


def test_only_one_trains_in_a_folder(run: RunFolder) -> None:
    language, sft = ([run.path("stages", name, "lock")] for name in ("language", "sft"))
    with exclusive(language), pytest.raises(MegaVLMError, match="is at work on stage 'language'"), exclusive(language):
        pass
    with exclusive([*language, *sft]):  # given back
        with pytest.raises(MegaVLMError, match="stage 'sft'") as raised, exclusive(sft):
            pass
        assert f"process {os.getpid()} on {socket.gethostname()}" in str(raised.value)
    with exclusive(language), exclusive(sft):  # stages side by side
        pass
