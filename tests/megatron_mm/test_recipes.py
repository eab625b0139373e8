"""Every shipped recipe resolves, validates, and builds on the meta device with the parameter counts it shows."""

import json
import re

import pytest
import torch

from megavlm.megatron_mm.config import AXES
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.platform.cli import main
from megavlm.platform.config import list_recipes, load_recipe
from megavlm.platform.errors import ConfigError

RECIPES = list(list_recipes())
WITH_MODEL = [name for name in RECIPES if "model" in load_recipe(name).sections]
MINIS = [name for name in WITH_MODEL if name.endswith("-mini")]
PUBLISHED = [name for name in WITH_MODEL if re.fullmatch(r"nvlm-[dxh]-(34b|72b)", name)]
BUILT = list({str(load_recipe(name).tree["model"]): name for name in reversed(WITH_MODEL)}.values())  # no model twice
NVLM = [name for name in WITH_MODEL if re.fullmatch(r"nvlm-[dxh]-(7b|34b|72b)", name)]


@pytest.mark.parametrize("name", RECIPES)
def test_it_resolves_and_says_where_every_value_comes_from(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.sections and recipe.description
    assert f"recipe {name}" in recipe.origins.values()
    assert set(recipe.origins.values()) <= {"default", *(f"recipe {other}" for other in RECIPES)}
    assert all(key in recipe.origins for key in recipe.sources)


def test_there_are_models_to_build() -> None:
    assert {f"nvlm-{kind}-mini" for kind in "dxh"} <= set(MINIS)
    assert len(PUBLISHED) == 6 and len(NVLM) == 9


@pytest.mark.parametrize("name", MINIS)
def test_a_mini_can_be_planned(name: str) -> None:
    recipe = load_recipe(name)
    plan = make_plan(recipe)
    total = recipe.section("model").parameter_counts()["total"]
    stages = recipe.section("stages")
    whole = [stage for stage in plan.stages if stage.name in stages.gates or not stages[stage.name].model]
    assert len(whole) >= 3 and {stage.parameters for stage in whole} == {total}


@pytest.mark.parametrize("name", BUILT)
def test_it_builds_with_the_counts_it_shows(name: str, one_process: BuildContext) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        built = build_model(recipe.section("model"), one_process)
    counts = {axis: sum(p.numel() for _, p in built.axis(axis)) for axis in AXES}
    shown = recipe.section("model").parameter_counts()
    assert {axis: shown[axis] for axis in AXES} == counts
    assert shown["auxiliary"] == sum(p.numel() for _, p in built.axis("objectives"))
    assert shown["exported"] == sum(counts.values())
    assert shown["total"] == sum(p.numel() for _, p in built.named_parameters())  # a teacher's too
    assert recipe.parameters.items() <= shown.items()


@pytest.mark.parametrize(
    ("name", "axis", "count"),
    [
        # 72,706,203,648 of Qwen2-72B, 6,052,672,640 of InternViT-6B with 7 dummy heads, 620,717,056 of the MLP
        ("nvlm-d-72b", "exported", 79_379_593_344),
        ("nvlm-d-72b", "connector", 620_717_056),
        ("nvlm-d-72b", "encoder", 6_052_672_640),
        ("nvlm-d-34b", "connector", 12800 * 20480 + 20480 * 7168 + 2 * 12800),
        ("nvlm-d-34b", "decoder", 34_388_917_248),  # Yi-34B, as its publishers count it
        ("nvlm-d-7b", "decoder", 7_615_616_512),  # Qwen2.5-7B, likewise
        ("nvlm-x-72b", "connector", 12800 * 8192 + 2 * 12800),
        ("nvlm-x-34b", "connector", 12800 * 7168 + 2 * 12800),
        ("nvlm-h-72b", "connector", 620_717_056),
        # 10 layers: queries and output, keys and values of 8 groups of 128, a norm, a gate
        ("nvlm-x-72b", "injection", 10 * (2 * 8192**2 + 2 * 8192 * 1024 + 8192 + 1)),
        ("nvlm-h-34b", "injection", 10 * (2 * 7168**2 + 2 * 7168 * 1024 + 7168 + 1)),
    ],
)
def test_published_sizes(name: str, axis: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"][axis] == count


# Tables 10 and 11 of the paper (arXiv 2409.11402), typed off them: batch, max and min rate, warm-up, betas, weight
# decay, clip, length, steps, tensor and pipeline parallel.
PRETRAIN = {
    "d": (2048, 1e-4, 2.5e-5, 500, (0.9, 0.95), 0.1, 10, 512, 20_000, 8, 1),
    "x": (2048, 1e-4, 1e-5, 1000, (0.9, 0.95), 0.05, 1.0, 512, 20_000, 8, 1),
    "h": (2048, 1e-4, 1e-5, 1000, (0.9, 0.98), 0.05, 1.0, 512, 20_000, 8, 1),
}
SFT = {
    "d": (128, 2e-6, 2.5e-7, 1000, (0.9, 0.98), 0.1, 10, 3200, 40_000, 8, 4),
    "x-34b": (512, 1e-5, 1e-6, 500, (0.9, 0.98), 0.05, 1.0, 1024, 20_000, 8, 1),
    "x-72b": (256, 1e-5, 1e-7, 500, (0.9, 0.98), 0.05, 1.0, 1024, 20_000, 8, 1),
    "h": (256, 1e-5, 1e-7, 1000, (0.9, 0.98), 0.05, 1.0, 1280, 40_000, 8, 1),
}
TRAINED = {
    "d": (["connector"], ["connector", "decoder"]),
    "x": (["connector", "injection"], ["connector", "injection", "decoder"]),
    "h": (["connector", "injection"], ["connector", "injection", "decoder"]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_stages_are_those_of_the_paper_s_tables(name: str) -> None:
    kind, size = name.removeprefix("nvlm-").split("-")
    stages = load_recipe(name).section("stages")
    expected = {"pretrain": PRETRAIN[kind], "sft": SFT.get(f"{kind}-{size}") or SFT[kind]}
    for (stage_name, values), trained in zip(expected.items(), TRAINED[kind], strict=True):
        stage = stages[stage_name]
        of, rate, parallel = stage.mixture.global_batch, stage.optimizer, stage.parallel
        assert of.unit == "samples" and rate.schedule == "cosine" and stage.train == trained
        told = (of.size, rate.lr, rate.min_lr, rate.warmup_steps, rate.betas, rate.weight_decay, rate.clip)
        assert (*told, stage.mixture.sequence_length, stage.steps, parallel.tp, parallel.pp) == values


@pytest.mark.parametrize("name", PUBLISHED)
def test_tiles_in_pretraining_and_sft(name: str) -> None:
    recipe = load_recipe(name)
    model, stages = recipe.section("model"), recipe.section("stages")
    tiles = [model.changed(stages[stage].model, "").tiling.max_tiles for stage in ("pretrain", "sft")]
    assert tiles == [6 if "-h-" in name else 1, 6] and model.tiling.thumbnail


@pytest.mark.parametrize("name", PUBLISHED)
def test_ten_layers_cross_attend_and_what_begins_as_it_is(name: str) -> None:
    recipe = load_recipe(name)
    model, pretrain = recipe.section("model"), recipe.section("stages")["pretrain"]
    assert "-d-" in name or model.injection.count(model.decoder) == 10
    assert pretrain.start and "encoder" not in pretrain.train and "decoder" not in pretrain.train


@pytest.mark.parametrize("name", NVLM)
def test_every_value_that_it_sets_has_a_source_and_every_guess_a_reason(name: str) -> None:
    recipe = load_recipe(name)
    own = {key for key, origin in recipe.origins.items() if origin != "default"}
    silent = {key for key in own - set(recipe.sources) if not re.match(r"name$|data\.sets\.|.*\.mixture\.sets\.", key)}
    assert silent == set()
    assert all(told.startswith("our guess: ") for told in recipe.sources.values() if told.startswith("our guess"))


@pytest.mark.parametrize("name", NVLM)
def test_the_dry_run_asks_for_the_ratios_that_the_paper_does_not_give(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_plan(load_recipe(name), nproc=8, nodes=4, elsewhere=True)
    assert raised.value.where == "stages.pretrain.mixture.ratios" and raised.value.exit_code == 2
    assert "paper table 4 names the sets and gives no ratios" in raised.value.what
    given = ["stages.pretrain.mixture.sets=null", "stages.pretrain.mixture.weights={coco: 2, vqav2: 1}"]
    with pytest.raises(ConfigError, match="no tokenizer 'models/"):
        make_plan(load_recipe(name, given), "pretrain", nproc=8, nodes=4, elsewhere=True)
    with pytest.raises(ConfigError, match="paper table 6"):
        make_plan(load_recipe(name, given), "sft", nproc=8, nodes=4, elsewhere=True)
    with pytest.raises(ConfigError, match="no tokenizer"):
        make_plan(load_recipe(name, ["stages.sft.mixture.ratios=sizes"]), "sft", nproc=8, nodes=4, elsewhere=True)
