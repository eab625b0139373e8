"""EVE's and EVEv2's recipes against what papers, READMEs and scripts say (arXiv 2406.11832 and 2502.06788)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.data.sets import sets_of
from megavlm.megatron_mm.data_sources.table import table
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.platform.cli import main
from megavlm.platform.config import load_recipe

RECIPES = ("eve-7b", "eve-7b-hd", "eve-v2-7b")
TOKENIZERS = Path(__file__).parent / "data" / "templates" / "fixtures" / "tokenizers"
# Samples, batch, highest rate, warm-up, what is trained: the READMEs' tables and the scripts.
ALIGNED = ["encoder", "connector", "objectives"]
EVERYTHING = ["encoder", "connector", "decoder", "objectives"]
VISUAL = ["encoder", "connector", "injection"]
STAGES = {
    "eve-7b": {
        "prealign": (16e6, 512, 4e-4, 0.03, ALIGNED),
        "pretrain": (33e6, 512, 4e-5, 0.01, EVERYTHING),
        "sft": (665_298, 128, 2e-5, 0.01, EVERYTHING),
    },
    "eve-7b-hd": {"sft": (1.8e6, 128, 2e-5, 0.01, EVERYTHING)},
    "eve-v2-7b": {
        "prealign": (10e6, 1024, 2e-4, 0.03, ["encoder", "connector"]),
        "layers": (29e6, 1024, 1e-4, 0.03, VISUAL),
        "layers-hd": (48e6, 1024, 5e-5, 0.03, VISUAL),
        "pretrain": (15e6, 512, 2e-5, 0.03, [*VISUAL, "decoder"]),
        "sft": (7.3e6, 512, 1e-5, 0.03, [*VISUAL, "decoder"]),
    },
}
# --model_max_length, which counts an image as one token.
LENGTHS = {
    "eve-7b": dict.fromkeys(["prealign", "pretrain", "sft"], 2048),
    "eve-7b-hd": {"sft": 4096},
    "eve-v2-7b": {"prealign": 2048, "layers": 2048, "layers-hd": 4096, "pretrain": 4096, "sft": 5000},
}
# Tokens of an image of this width and height, class and row ends among them: counted on the published code.
TOKENS = {
    "eve-7b": {(900, 900): 601, (640, 480): 451, (480, 640): 457, (1920, 1080): 351},
    "eve-7b-hd": {(50, 50): 2353, (640, 480): 1765, (1920, 1080): 1373},
    "eve-v2-7b": {(1600, 1600): 50 * 51 + 1},
}
FORTY_EIGHT = {"eve-recap-33m": 33, "eve-recap-44m": 15}
EVERY_STAGE = {"mixture.pack", "loss.normalisation", "parallel.tp", "optimizer.clip"}


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """`shown(recipe, words...)`: what `recipes show --json` prints."""

    def run(*words: str) -> dict:
        assert main(["recipes", "show", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process in a folder with every tokenizer and data set of these recipes, the sets empty."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vicuna-7b-v1.5").symlink_to(TOKENIZERS / "llama2")
    (tmp_path / "models" / "Qwen2.5-7B-Instruct").symlink_to(TOKENIZERS / "qwen2")
    for name in RECIPES:
        for each in load_recipe(name).section("data").sets.values():
            (tmp_path / each).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tokens(model: ModelConfig, width: int, height: int) -> int:
    return model.tile_tokens(model.tiling.plan(width, height))


def test_eve_counts_what_the_published_modules_have(shown: Callable[..., dict]) -> None:
    counts = shown("eve-7b")["parameters"]
    assert counts["encoder"] + counts["connector"] == 9_003_008 + 20_979_712 == 29_982_720
    assert counts["auxiliary"] == 43_067_392
    assert counts["decoder"] == 6_738_415_616
    clip = 303_507_456  # whole, as released; its last layer, which nothing reads, is not built
    assert round(2 * (counts["exported"] + counts["auxiliary"] + clip) / 1e9, 2) == 14.23  # with all of PEL and PAL
    last = 4 * 1024 * 1024 + 4 * 1024 + 2 * 1024 * 4096 + 1024 + 4096 + 4 * 1024
    assert counts["teacher"] == clip - last - 2 * 1024  # nor its last norm
    hd = shown("eve-7b-hd")["parameters"]
    assert {part: hd[part] for part in counts} == counts, "nothing depends on the side of the images"


def test_eve_v2_counts_a_second_set_of_weights_in_every_layer(shown: Callable[..., dict]) -> None:
    counts = shown("eve-v2-7b")["parameters"]
    attention = 3584 * 3584 * 2 + 2 * 3584 * 512 + 3584 + 2 * 512
    assert counts["injection"] == 28 * (attention + 3 * 3584 * 18944 + 2 * 3584)
    assert counts["encoder"] == 3 * 16**2 * 1024 + 1024 + 4 * 1024 * 3584 + 3584
    assert counts["connector"] == 2 * 3584 and counts["auxiliary"] == 0
    assert counts["exported"] * 2 / 1e9 == pytest.approx(28.33, abs=0.03)  # six released files


@pytest.mark.parametrize("name", RECIPES)
def test_tokens_of_images_of_any_shape(name: str) -> None:
    model = load_recipe(name).section("model")
    assert {size: tokens(model, *size) for size in TOKENS[name]} == TOKENS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_the_stages_are_those_of_the_readmes_and_scripts(name: str) -> None:
    stages = load_recipe(name).section("stages").root
    assert set(stages) == set(STAGES[name])
    for stage_name, (samples, batch, rate, warmup, trained) in STAGES[name].items():
        stage = stages[stage_name]
        of, by = stage.mixture.global_batch, stage.optimizer
        assert (of.unit, of.size, stage.steps) == ("samples", batch, math.ceil(samples / batch))
        assert (by.lr, by.min_lr, by.schedule, by.warmup_steps) == (rate, 0, "cosine", math.ceil(warmup * stage.steps))
        assert (by.betas, by.eps, by.weight_decay, by.clip) == ((0.9, 0.999), 1e-8, 0, 1)
        assert (stage.precision, stage.train) == ("bf16", trained)
        grouped = stage_name == "sft"
        assert stage.mixture.order == ("group_by_modality_length" if grouped else "shuffled")


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_told_plainly_and_what_in_turns(name: str) -> None:
    stages = load_recipe(name).section("stages").root
    plain = {each for each, stage in stages.items() if stage.template and stage.template.name == "plain"}
    captioned = {each for each, stage in stages.items() if {"eve-cap33m", "eve-recap-44m"} & set(sets_of(stage))}
    assert plain == captioned == {"prealign", "pretrain", "layers", "layers-hd"} & captioned


@pytest.mark.parametrize("name", RECIPES)
def test_a_sequence_holds_the_text_and_a_square_image(name: str) -> None:
    """The published length cuts the text before its one image token becomes hundreds."""
    recipe = load_recipe(name)
    for stage, text in LENGTHS[name].items():
        model = StageData.of(recipe, stage).model
        length = recipe.section("stages")[stage].mixture.sequence_length
        assert length == text - 1 + tokens(model, 1000, 1000) <= model.decoder.max_positions


def test_sides_and_weights_that_a_stage_has() -> None:
    recipe = load_recipe("eve-v2-7b")
    models = {stage: StageData.of(recipe, stage).model for stage in STAGES["eve-v2-7b"]}
    assert [model.tiling.tile for model in models.values()] == [800, 800, 1600, 1600, 1600]
    assert [model.injection.name == "modality_weights" for model in models.values()] == [False, *[True] * 4]
    shares = recipe.section("stages")["layers-hd"].mixture.shares
    assert {name: share.weight for name, share in shares.items()} == FORTY_EIGHT


def test_the_aligning_loss_is_on_in_every_stage() -> None:
    for name in ("eve-7b", "eve-7b-hd"):
        for stage in STAGES[name]:
            told, aligning = StageData.of(load_recipe(name), stage).model.objectives
            assert told.name == "next_token" and (aligning.name, aligning.weight) == ("patch_aligning", 1.0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_that_it_sets_has_a_source(name: str) -> None:
    recipe = load_recipe(name)
    own = {key for key, origin in recipe.origins.items() if origin != "default"}
    assert {key for key in own - set(recipe.sources) if not re.match(r"name$|data\.sets\.", key)} == set()
    assert all(told.startswith("our guess: ") for told in recipe.sources.values() if told.startswith("our guess"))


@pytest.mark.parametrize(
    ("name", "more"),
    [("eve-7b", set()), ("eve-7b-hd", {"model.decoder.max_positions"}), ("eve-v2-7b", {"data.template.name"})],
)
def test_each_open_choice_is_listed(name: str, more: set[str], shown: Callable[..., dict]) -> None:
    expected = {"seed", *more} | {f"stages.{stage}.{key}" for stage in STAGES[name] for key in EVERY_STAGE}
    listed = set(shown(name, "--only", "guesses")["values"])
    gate = {key for key in listed if key.startswith("stages.gate.")}  # no paper of these has one
    assert listed - gate == expected and {"stages.gate.gate.max_drop", "stages.gate.gate.baseline"} <= gate


@pytest.mark.parametrize("name", RECIPES)
def test_its_data_is_in_the_table_under_its_role(name: str) -> None:
    known = table()
    for stage_name, stage in load_recipe(name).section("stages").root.items():
        for each in sets_of(stage):
            assert ("sft" if stage_name == "sft" else "pretraining") in known[each].roles, each


def test_eve_s_data_adds_up_to_what_its_tables_say() -> None:
    rows = table()
    of = {role: [row.samples for row in rows.values() if role in row.roles] for role in ("EVE-cap33M", "EVE-mix1.8M")}
    assert sum(filter(None, of["EVE-cap33M"])) == rows["eve-cap33m"].samples == 33_000_000
    assert len(of["EVE-mix1.8M"]) == 18 and sum(filter(None, of["EVE-mix1.8M"])) == 1_348_000  # and 1.8 in the text


@pytest.mark.parametrize("name", RECIPES)
def test_it_can_be_planned_on_eight_gpus(name: str, prepared: Path) -> None:
    recipe = load_recipe(name)
    counts = recipe.section("model").parameter_counts()
    trained = {stage.name: stage.trained_parameters for stage in make_plan(recipe, nproc=8, elsewhere=True).stages}
    assert trained["sft"] == counts["exported"] + counts["auxiliary"]
    seen = counts["encoder"] + counts["connector"]
    assert trained.get("prealign", seen) == seen + (counts["auxiliary"] if name == "eve-7b" else 0) or name[-2:] == "hd"
