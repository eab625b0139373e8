"""Weights between a model and its backbone: against plain torch arithmetic on what is exported of either."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file, save_file
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import COMPLETE, checkpoint_path, resolve
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.conversion.interpolate_verb import main as interpolate_main
from megavlm.megatron_mm.conversion.start import fill_parts
from megavlm.megatron_mm.conversion.verb import export_main
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.model import build_model
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, InputError, MegaVLMError
from megavlm.platform.runs import RunFolder

RECIPE = """
model:
  tiling: {tile: 28}
  encoder: {name: internvit, image_size: 28, patch_size: 7, layers: 1, hidden: 32, heads: 4, dummy_heads: 0, ffn: 48}
  connector: {name: pixel_shuffle_mlp, hidden: 48}
  injection: {name: cross_attention, every: 2}
  decoder: {name: llama, layers: LAYERS, hidden: 32, heads: 4, kv_heads: 2, ffn: 48, vocab: VOCAB, max_positions: 512,
            rope_base: ROPE, norm_eps: 1.0e-5, tied: TIED}
data: {tokenizer: mini, template: {name: chatml}, sets: {pairs: somewhere}}
stages:
  language: &stage
    train: [decoder]
    steps: 1
    optimizer: {lr: 1e-3}
    mixture: {weights: {pairs: 1}, sequence_length: 512, packs_per_batch: 1}
  sft: {<<: *stage, after: [language]}
"""
SHAPE = {"LAYERS": "2", "VOCAB": "512", "ROPE": "1.0e4", "TIED": "false"}
TABLES = ("decoder.embedding.word_embeddings.weight", "decoder.output_layer.weight")


def make_run(folder: Path, seeds: dict[str, int], **shape: str) -> Path:
    """A run whose stages' checkpoints are drawn from these seeds."""
    text = RECIPE
    for key, value in (SHAPE | shape).items():
        text = text.replace(key, value)
    folder.mkdir()
    (folder / "own.yaml").write_text(text)
    recipe = load_recipe(str(folder / "own.yaml"))
    run = RunFolder.create(folder / "run", recipe.tree, recipe.origins, [])
    backend.init_distributed(Parallel(), seed=1)
    for stage, seed in seeds.items():
        model = build_model(StageData.of(recipe, stage).model, backend.build_context(Parallel(), "fp32"))
        backend.initialise(model, seed)
        checkpoint = checkpoint_path(run, stage, 1)
        checkpoint.mkdir(parents=True)
        dist_checkpointing.save(model.sharded_state_dict(), str(checkpoint))
        (checkpoint / COMPLETE).write_text(json.dumps({"stage": stage, "step": 1}))
    backend.shutdown()
    return run.root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.set_num_threads(1)
    yield make_run(tmp_path_factory.mktemp("mixed") / "own", {"language": 3, "sft": 4})


def export(source: Path | str, out: Path, *words: str) -> dict[str, Tensor]:
    """The tensors of an export of our own format, all in one file."""
    assert export_main([str(source), "--format", "megavlm", "--out", str(out), *words]) == 0
    return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def sides(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    home = tmp_path_factory.mktemp("sides")
    return export(run, home / "sft", "--stage", "sft"), export(run, home / "language", "--stage", "language")


def plain(
    weight: float, sides: tuple[dict[str, Tensor], dict[str, Tensor]], part: str = "decoder"
) -> dict[str, Tensor]:
    """The formula over the exports."""
    trained, backbone = sides
    mixed = {name: weight * of + (1 - weight) * backbone[name] for name, of in trained.items()}
    return {name: mixed[name] if name.startswith(f"{part}.") else of for name, of in trained.items()}


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.7, 1.0])
def test_an_export_is_the_formula_bit_for_bit(run: Path, sides: tuple, tmp_path: Path, weight: float) -> None:
    words = ["--interpolate", str(weight), "--backbone", f"{run}:language"]
    found, wanted = export(f"{run}:sft", tmp_path / "out", *words), plain(weight, sides)
    assert found.keys() == wanted.keys() and any(name.startswith("injection.") for name in found)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    ends = {1.0: sides[0], 0.0: sides[1]}
    if weight in ends:
        of_decoder = [name for name in found if name.startswith("decoder.")]
        assert len(of_decoder) > 12
        assert all(_bits(found[name]) == _bits(ends[weight][name]) for name in of_decoder)
    told = json.loads((tmp_path / "out" / "interpolation.json").read_text())
    assert told["weight"] == weight and told["parts"] == ["decoder"]
    assert told["trained"] == {"run": "run", "stage": "sft", "checkpoint": "step-000001"}
    assert told["backbone"] == {"run": "run", "stage": "language", "checkpoint": "step-000001"}


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_sums_are_in_float32_and_rounded_once(run: Path, sides: tuple, tmp_path: Path) -> None:
    words = ["--interpolate", "0.3", "--backbone", f"{run}:language", "--dtype", "bfloat16"]
    found, wanted = export(f"{run}:sft", tmp_path / "out", *words), plain(0.3, sides)
    assert all(torch.equal(found[name], wanted[name].bfloat16()) for name in wanted)


def test_other_parts_where_they_are_asked_for(run: Path, sides: tuple, tmp_path: Path) -> None:
    words = ["--interpolate", "0.5", "--backbone", f"{run}:language", "--interpolate-parts", "encoder"]
    found, wanted = export(f"{run}:sft", tmp_path / "out", *words), plain(0.5, sides, "encoder")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_published_weights_as_the_backbone(run: Path, sides: tuple, tmp_path: Path) -> None:
    assert export_main([f"{run}:language", "--format", "llama", "--out", str(tmp_path / "llama")]) == 0
    words = ["--interpolate", "0.25", "--backbone", str(tmp_path / "llama")]
    found, wanted = export(f"{run}:sft", tmp_path / "out", *words), plain(0.25, sides)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    told = json.loads((tmp_path / "out" / "interpolation.json").read_text())
    assert told["backbone"] == {"folder": str(tmp_path / "llama")}


@pytest.mark.parametrize("published", [False, True], ids=["run", "folder"])
@pytest.mark.parametrize("tied", ["false", "true"], ids=["untied", "tied"])
def test_rows_that_the_backbone_lacks_stay(tmp_path: Path, tied: str, published: bool) -> None:
    trained = make_run(tmp_path / "grown", {"sft": 4}, TIED=tied)
    small = make_run(tmp_path / "small", {"language": 3}, VOCAB="500", TIED=tied)
    backbone = f"{small}:language"
    sides = export(trained, tmp_path / "a"), export(small, tmp_path / "b")
    if published:
        assert export_main([backbone, "--format", "llama", "--out", str(tmp_path / "llama")]) == 0
        backbone = str(tmp_path / "llama")
    for weight in (0.0, 0.6):
        words = ["--interpolate", str(weight), "--backbone", backbone]
        found = export(trained, tmp_path / f"out{weight}", *words)
        tables = [name for name in TABLES if name in found]
        assert len(tables) == (1 if tied == "true" else 2)
        for name in tables:
            own, theirs = (side[name] for side in sides)
            wanted = torch.cat([weight * own[:500] + (1 - weight) * theirs, own[500:]])
            assert len(theirs) == 500 and torch.equal(found[name], wanted)
        others = [name for name in found if name.startswith("decoder.") and name not in TABLES]
        assert all(torch.equal(found[k], weight * sides[0][k] + (1 - weight) * sides[1][k]) for k in others)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"LAYERS": "1"}, "model.decoder.layers is 2, and the backbone's is 1"),
        ({"ROPE": "5.0e4"}, "model.decoder.rope_base is 10000.0, and the backbone's is 50000.0"),
        ({"TIED": "true"}, "model.decoder.tied is False, and the backbone's is True"),
        ({"VOCAB": "520"}, "the backbone's vocabulary has 520 rows, and the trained model's 512"),
    ],
)
def test_another_model_is_refused_by_what_differs(run: Path, tmp_path: Path, shape: dict, said: str) -> None:
    other = make_run(tmp_path / "other", {"language": 3}, **shape)
    words = ["--weight", "0.5", "--out", str(tmp_path / "out")]
    with pytest.raises(MegaVLMError, match=said):
        interpolate_main([f"{run}:sft", f"{other}:language", *words])
    assert not (tmp_path / "out").exists()


def test_published_tensors_that_do_not_fit_are_named(run: Path, tmp_path: Path) -> None:
    assert export_main([f"{run}:language", "--format", "llama", "--out", str(tmp_path / "llama")]) == 0
    whole = load_file(tmp_path / "llama" / "model.safetensors")
    norm, words = "model.layers.1.input_layernorm.weight", ["--weight", "0.5", "--out", str(tmp_path / "out")]
    for change, said in (({norm: torch.ones(33)}, rf"'{norm}' is \[33\]"), ({"model.x": torch.ones(1)}, "model.x")):
        save_file(whole | change, tmp_path / "llama" / "model.safetensors")
        with pytest.raises(InputError, match=said):
            interpolate_main([f"{run}:sft", str(tmp_path / "llama"), *words])
    save_file({k: v for k, v in whole.items() if k != norm}, tmp_path / "llama" / "model.safetensors")
    with pytest.raises(InputError, match=f"lacks tensors that the model has: {norm}"):
        interpolate_main([f"{run}:sft", str(tmp_path / "llama"), *words])
    save_file(whole, tmp_path / "llama" / "model.safetensors")
    with pytest.raises(InputError, match="format llama has no encoder: "):
        interpolate_main([f"{run}:sft", str(tmp_path / "llama"), "--parts", "encoder", *words])
    assert not (tmp_path / "out").exists()


def test_a_run_of_it_is_judged_exported_and_started_from(
    run: Path, sides: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half"
    words = [f"{run}:sft", f"{run}:language", "--weight", "0.5", "--out", str(out), "--json"]
    assert interpolate_main([*words, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["checkpoint"] is None and planned["mixed"] > 12 < planned["kept"] and not out.exists()
    assert interpolate_main(words) == 0
    told = json.loads(capsys.readouterr().out)
    source, wanted = resolve(str(out)), plain(0.5, sides)
    assert (source.stage, str(source.checkpoint)) == ("sft", told["checkpoint"])
    assert source.recipe.tree == resolve(str(run), "sft").recipe.tree
    marker = json.loads((source.checkpoint / COMPLETE).read_text())
    assert marker["interpolation"]["weight"] == 0.5 and set(marker["parts"]) >= {"encoder", "connector", "decoder"}
    assert all(torch.equal(of, wanted[name]) for name, of in export(out, tmp_path / "exported").items())
    backend.init_distributed(Parallel(), seed=1)
    try:
        model = build_model(StageData.of(source.recipe, "sft").model, backend.build_context(Parallel(), "fp32"))
        fill_parts(model, source.checkpoint)
        loaded = {f"{axis}.{n}": p for axis in ("encoder", "connector", "decoder") for n, p in model.axis(axis)}
        assert loaded and all(torch.equal(of, wanted[name]) for name, of in loaded.items())
    finally:
        backend.shutdown()
    with pytest.raises(ConfigError, match="is there already"):
        interpolate_main(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--interpolate", "0.5"], "--interpolate without --backbone"),
        (["--backbone", "x"], "--backbone without --interpolate"),
        (["--interpolate", "1.5", "--backbone", "{run}:language"], r"weight 1.5 is not in \[0, 1\]"),
        (["--interpolate", "nan", "--backbone", "{run}:language"], r"weight nan is not in \[0, 1\]"),
        (["--interpolate", "0.5", "--backbone", "{run}:nothing"], "unknown stage 'nothing'"),
        (["--interpolate", "0.5", "--backbone", "no/such/run"], "no run 'no/such/run'"),
    ],
)
def test_refused_before_any_weight_is_read(run: Path, tmp_path: Path, words: list[str], said: str) -> None:
    words = [word.replace("{run}", str(run)) for word in words]
    with pytest.raises(MegaVLMError, match=said):
        export_main([f"{run}:sft", "--format", "megavlm", "--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
