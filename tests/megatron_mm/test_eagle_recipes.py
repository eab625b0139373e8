"""EAGLE's and MMFuser's recipes against what the papers and their scripts say (arXiv 2408.15998 and 2410.11829)."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megavlm.megatron_mm.config import Stage
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.platform.cli import main
from megavlm.platform.config import list_recipes, load_recipe

EAGLE = [name for name in list_recipes() if re.fullmatch(r"eagle-x\d-\d+b(-\w+)?", name)]
MMFUSER = [name for name in list_recipes() if re.fullmatch(r"mmfuser-\d+b", name)]
TOKENIZERS = Path(__file__).parent / "data" / "templates" / "fixtures" / "tokenizers"
FAMILIES = {"vicuna": "llama2", "Llama-3": "llama3", "Yi": "yi"}
UNUSED_HEAD = 3072 + 3072 + 3072 * 1024  # of the published ConvNeXt: norm and projection, which are not built

# Millions, with an MLP of 1024 channels: figure 4.
FIGURE_4 = {
    "clip, convnext": 1155.2, "clip, convnext, dinov2": 1460.6, "clip, convnext, sam": 1463.9,
    "clip, convnext, pix2struct": 1669.6, "clip, convnext, eva02": 1459.6, "clip, convnext, eva02, dinov2": 1765.1,
    "clip, convnext, eva02, sam": 1768.4, "clip, convnext, eva02, pix2struct": 1974.1,
    "clip, convnext, eva02, pix2struct, dinov2": 2279.5, "clip, convnext, eva02, pix2struct, sam": 2282.8,
    "clip, convnext, eva02, pix2struct, sam, dinov2": 2588.2,
}  # fmt: skip
DINOV2 = "model.encoder.experts.dinov2=dinov2"
TWO, THREE = "model.encoder.use=[clip, convnext]", "model.encoder.use=[clip, convnext, sam]"
APPEND = "model.connector={name: sequence_append}"
# Millions, with MLPs of Vicuna-7B's 4096 channels: table 4. The shapes of its other two rows are unpublished.
TABLE_4 = [
    ([TWO, APPEND], 1200),
    ([TWO], 1184),
    (["model.encoder={name: llava_hr}", "model.connector={name: mlp}"], 1219),
    ([THREE, APPEND], 1529),
    ([THREE], 1495),
]
# Recipe -> channels of all maps, the decoder's width, and the connector's parameters as published, in millions.
CONNECTORS = {
    "eagle-x4-7b": (6656, 4096, 44.0), "eagle-x5-7b": (7680, 4096, 48.2), "eagle-x5-7b-prealign": (7680, 4096, 48.2),
    "eagle-x5-13b": (7680, 5120, 65.5), "eagle-x4-13b-plus": (6656, 5120, 60.3), "eagle-x4-8b-plus": (6656, 4096, 44.0),
    "eagle-x5-34b": (7680, 7168, 106.4),
}  # fmt: skip
# Samples, batch and highest rate: section 2.1 and the scripts; one epoch, 0.03 of it warm-up.
LLAVA, MIX = (595_375, 256, 1e-3), (1_809_000, 128, 2e-5)
CAMBRIAN = {"pretrain": (2_500_000, 1024, 2e-4), "sft": (7_000_000, 1024, 2e-5)}
BOTH = (595_375 + 1_809_000, 256, 1e-3)
STAGES = {
    **dict.fromkeys(["eagle-x4-7b", "eagle-x5-7b", "eagle-x5-13b"], {"pretrain": LLAVA, "sft": MIX}),
    **dict.fromkeys(["eagle-x4-13b-plus", "eagle-x4-8b-plus", "eagle-x5-34b"], CAMBRIAN),
    "eagle-x5-7b-prealign": {
        "pretrain": LLAVA, "sft": MIX,
        **dict.fromkeys([f"align_{each}" for each in ("clip", "convnext", "sam", "eva02", "pix2struct")], BOTH),
        "joint": BOTH, "sft_aligned": MIX,
    },
    **dict.fromkeys(MMFUSER, {"pretrain": (558_128, 256, 1e-3), "sft": (665_298, 128, 2e-5)}),
}  # fmt: skip


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """`shown(recipe, overrides...)`: what `recipes show --json` prints."""

    def run(*words: str) -> dict:
        assert main(["recipes", "show", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which every tokenizer and data set of these recipes is there, the sets empty."""
    here = tmp_path_factory.mktemp("here")
    (here / "models").mkdir()
    for name in (*EAGLE, *MMFUSER):
        data = load_recipe(name).section("data")
        kind = next(kind for family, kind in FAMILIES.items() if family in data.tokenizer)
        if not (here / data.tokenizer).exists():
            (here / data.tokenizer).symlink_to(TOKENIZERS / kind)
        for each in data.sets.values():
            (here / each).mkdir(parents=True, exist_ok=True)
    return here


@pytest.fixture
def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, and this process in it."""
    monkeypatch.chdir(folder)
    return folder


def test_there_are_recipes_to_test() -> None:
    assert set(EAGLE) == set(CONNECTORS) and MMFUSER == ["mmfuser-13b", "mmfuser-7b"]
    assert set(STAGES) == {*EAGLE, *MMFUSER}


@pytest.mark.parametrize("name", EAGLE)
def test_the_connector_counts_what_the_paper_says(name: str, shown: Callable[..., dict]) -> None:
    channels, width, millions = CONNECTORS[name]
    counted = shown(name)["parameters"]["connector"]
    assert counted == (channels + 1) * width + (width + 1) * width
    assert round(counted / 1e6, 1) == millions


@pytest.mark.parametrize("use", FIGURE_4)
def test_figure_4_s_sets_of_experts(use: str, shown: Callable[..., dict]) -> None:
    counts = shown("eagle-x5-7b", DINOV2, f"model.encoder.use=[{use}]", "model.decoder.hidden=1024")["parameters"]
    assert (counts["encoder"] + counts["connector"] + UNUSED_HEAD) / 1e6 == pytest.approx(FIGURE_4[use], abs=0.2)


@pytest.mark.parametrize(("overrides", "millions"), TABLE_4)
def test_table_4_s_fusions(overrides: list[str], millions: int, shown: Callable[..., dict]) -> None:
    counts = shown("eagle-x5-7b", *overrides)["parameters"]
    assert (counts["encoder"] + counts["connector"] + UNUSED_HEAD) / 1e6 == pytest.approx(millions, abs=1.0)


@pytest.mark.parametrize(("clip", "figure"), [(336, True), (448, False)])
def test_figure_4_s_flops_are_those_of_clip_at_336_pixels(clip: int, figure: bool) -> None:
    """3,347.2 and 3,659.9 G multiply-adds of modules (so no attention) with a 1024-wide MLP: figure 4's CL+CN, +DI."""
    for use, published in (("clip, convnext", 3347.2), ("clip, convnext, dinov2", 3659.9)):
        size = f"model.encoder.experts.clip.image_size={clip}"
        overrides = [DINOV2, f"model.encoder.use=[{use}]", "model.decoder.hidden=1024", size]
        model = load_recipe("eagle-x5-7b", overrides).section("model")
        seen, mlp = model.encoder.flops(), model.connector.flops(model.encoder.maps, model.width)
        counted = (seen.weights + seen.entrance + mlp.weights) / 2e9
        assert (abs(counted - published) < 0.5) == figure


@pytest.mark.parametrize(("name", "channels"), [("eagle-x4-7b", 6656), ("eagle-x5-7b", 7680)])
def test_channels_of_the_connector_as_it_is_built(name: str, channels: int, one_process: BuildContext) -> None:
    model = load_recipe(name).section("model")
    with torch.device("meta"):
        built = model.connector.build(one_process, model.encoder.maps, model.width)
    assert {tuple(p.shape) for p in built.parameters() if p.dim() == 2} == {(4096, channels), (4096, 4096)}
    assert sum(each.channels for each in model.encoder.maps) == channels and model.tokens_per_tile == 1024


@pytest.mark.parametrize(("name", "width"), [("mmfuser-7b", 4096), ("mmfuser-13b", 5120)])
def test_mmfuser_s_connector(name: str, width: int, shown: Callable[..., dict]) -> None:
    assert shown(name)["parameters"]["connector"] == 5_190_592 + (1024 + 1) * width + (width + 1) * width
    model = load_recipe(name).section("model")
    assert model.parts["connector.fuser"] == 5_190_592 and model.tokens_per_tile == 576
    assert [each.layer for each in model.encoder.maps] == [layer + 24 + 1 for layer in (-22, -17, -12, -7, -2)]


@pytest.mark.parametrize("name", [*EAGLE, *MMFUSER])
def test_the_stages_are_those_of_the_papers_and_scripts(name: str) -> None:
    stages = load_recipe(name).section("stages").root
    assert set(stages) == set(STAGES[name])
    for stage_name, (samples, batch, rate) in STAGES[name].items():
        stage = stages[stage_name]
        of, by = stage.mixture.global_batch, stage.optimizer
        assert (of.unit, of.size, stage.steps) == ("samples", batch, math.ceil(samples / batch))
        assert (by.lr, by.min_lr, by.schedule, by.warmup_steps) == (rate, 0, "cosine", math.ceil(0.03 * stage.steps))
        assert (by.betas, by.eps, by.weight_decay, by.clip) == ((0.9, 0.999), 1e-8, 0, 1)
        assert (stage.mixture.sequence_length, stage.precision) == (2048, "bf16")
        _looks_and_speaks(stage, first=stage_name == "pretrain")


def _looks_and_speaks(stage: Stage, first: bool) -> None:
    """A first stage crops and has no template, and its order is any; the others group by modality."""
    assert (stage.model.get("tiling") == {"fit": "crop"}) == first
    assert (stage.template is not None and stage.template.name == "plain") == first
    assert stage.mixture.order == ("shuffled" if first else "group_by_modality_length")


def test_rates_of_their_own() -> None:
    fuser = [load_recipe(name).section("stages")["pretrain"].optimizer.groups for name in ("mmfuser-7b", "mmfuser-13b")]
    assert fuser[0] == {} and {part: group.lr for part, group in fuser[1].items()} == {"connector.fuser": 1e-4}
    aligned = load_recipe("eagle-x5-7b-prealign").section("stages")
    assert {aligned[name].optimizer.groups["encoder"].lr for name in ("align_sam", "joint")} == {2e-5}


@pytest.mark.parametrize("name", [*EAGLE, *MMFUSER])
def test_every_value_that_it_sets_has_a_source(name: str) -> None:
    recipe = load_recipe(name)
    own = {key for key, origin in recipe.origins.items() if origin != "default"}
    assert {key for key in own - set(recipe.sources) if not re.match(r"name$|data\.sets\.", key)} == set()
    assert all(told.startswith("our guess: ") for told in recipe.sources.values() if told.startswith("our guess"))


STAGED = {"stages.sft.parallel.pp", "stages.sft.parallel.sequence_parallel"}


def guesses(*keys: str, stages: tuple[str, ...] = ("pretrain", "sft")) -> set[str]:
    every = ("mixture.pack", "loss.normalisation", "parallel.tp", *keys)
    return {"seed", *(f"stages.{stage}.{key}" for stage in stages for key in every)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eagle-x5-7b", guesses()),
        ("eagle-x4-8b-plus", guesses("optimizer.lr")),
        ("eagle-x5-34b", guesses() | {"stages.pretrain.template.bos", *STAGED}),
        ("mmfuser-13b", guesses()),
    ],
)
def test_each_open_choice_is_listed(name: str, expected: set[str], shown: Callable[..., dict]) -> None:
    listed = set(shown(name, "--only", "guesses")["values"])
    gate = {key for key in listed if key.startswith("stages.gate.")}  # no paper of these has one
    assert listed - gate == expected and {"stages.gate.gate.max_drop", "stages.gate.gate.baseline"} <= gate


def test_pre_alignment_s_open_choices_are_listed(shown: Callable[..., dict]) -> None:
    listed = shown("eagle-x5-7b-prealign", "--only", "guesses")["values"]
    open_of_it = {"optimizer.lr", "optimizer.groups.encoder.lr", "mixture.batch.size", "optimizer.warmup_steps"}
    assert {f"stages.{stage}.{key}" for stage in ("align_eva02", "joint") for key in open_of_it} <= set(listed)
    assert not any(key.startswith("stages.sft_aligned.optimizer") for key in listed)


@pytest.mark.parametrize("name", [*EAGLE, *MMFUSER])
def test_it_can_be_planned_on_eight_gpus(name: str, prepared: Path) -> None:
    recipe = load_recipe(name)
    model, plan = recipe.section("model"), make_plan(recipe, nproc=8, elsewhere=True)
    trained = {stage.name: stage.trained_parameters for stage in plan.stages}
    whole = model.parameter_counts()["total"]
    if name.endswith("prealign"):
        assert list(trained)[-3:] == ["joint", "sft_aligned", "gate_aligned"] and len(trained) == 8
        # Vicuna stays as it is: SAM and the MLP from its 1024 channels are trained.
        assert trained["align_sam"] == model.encoder.parts["sam"] + 1025 * 4096 + 4097 * 4096
        assert trained["joint"] == model.parts["encoder"] + model.parts["connector"] == whole - model.parts["decoder"]
    else:
        frozen = model.parts["encoder"] if name in MMFUSER else 0
        assert list(trained.items()) == [("pretrain", model.parts["connector"]), ("sft", whole - frozen), ("gate", 0)]


def test_the_dry_run_loads_no_torch(prepared: Path) -> None:
    start = prepared / "runs" / "eagle-x5-7b-start"
    (start / "checkpoints" / "pretrain" / "step-000000").mkdir(parents=True)
    (start / "checkpoints" / "pretrain" / "step-000000" / "COMPLETE").write_text("{}")
    (start / "config.yaml").write_text("base: eagle-x5-7b\nname: eagle-x5-7b-start\n")
    code = (
        "import sys; from megavlm.platform.cli import main;"
        "done = main(['train', 'eagle-x5-7b', 'stages.gate=null', '--dry-run', '--nproc', '8', '--json']);"
        "sys.exit(done or ('torch' in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stderr.decode()
    stages = {stage["name"]: stage for stage in json.loads(ran.stdout)["stages"]}
    assert (stages["pretrain"]["dp"], stages["sft"]["dp"]) == (8, 4)
