"""EVEv2's checkpoints in and out: two sets of weights in every layer, or one before the second begins."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from megavlm.megatron_mm.backend import shutdown
from megavlm.megatron_mm.config import AXES, ModelConfig
from megavlm.megatron_mm.conversion.accounts import pair_up
from megavlm.megatron_mm.conversion.eve_v2 import EveV2
from megavlm.megatron_mm.conversion.ours import slots
from megavlm.megatron_mm.conversion.stored import Stored
from megavlm.megatron_mm.conversion.verb import export_main, import_main, verify_main
from megavlm.platform.errors import ConfigError, InputError

QWEN_7B = {"layers": 28, "hidden": 3584, "heads": 28, "kv_heads": 4, "ffn": 18944, "vocab": 152064}
TEXT = {"layers": 3, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 520}
EVE_7B, SMALL = ({"hidden": each, "patch_size": patch} for each, patch in ((1024, 16), (12, 4)))
STAGE = {
    "train": ["connector"], "steps": 1, "optimizer": {"lr": 1e-3},
    "mixture": {"weights": {"pairs": 1}, "sequence_length": 512, "packs_per_batch": 1},
}  # fmt: skip
INLINE = {"name": "inline", "tags": "none"}


def model_of(sight: dict[str, Any], text: dict[str, Any], tile: int = 16, **axes: Any) -> dict[str, Any]:
    return {
        "tiling": {"name": "fixed_area", "tile": tile, "side_step": sight["patch_size"] * 2},
        "encoder": {"name": "eve_v2", "image_size": tile, "channels": text["hidden"], **sight},
        "connector": {"name": "image_rows", "class_attention": False, "layers": 0} | axes.get("connector", {}),
        "injection": axes.get("injection", {"name": "modality_weights"}),
        "decoder": {"name": "qwen2", "max_positions": 512} | text,
    }


@pytest.fixture
def home(tmp_path: Path, shapes: ModuleType) -> Path:
    """A small release in tmp_path/model, and recipe.yaml."""
    torch.set_num_threads(1)
    write_recipe(tmp_path, model_of(SMALL, TEXT))
    draw = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(s, generator=draw).bfloat16() for name, s in shapes.eve_v2(SMALL, TEXT).items()}
    (tmp_path / "model").mkdir()
    save_file(drawn, tmp_path / "model" / "model.safetensors")
    config = {
        "architectures": ["EVEQwen2ForCausalLM"], "model_type": "eve-qwen2", "hidden_size": 32, "mm_hidden_size": 12,
        "mm_vision_tower": "openai/eve-anyratio-res16-patch4", "num_attention_heads": 4, "add_moe": True,
    }  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return tmp_path


def write_recipe(home: Path, model: dict[str, Any]) -> None:
    recipe = {"model": model, "data": {"tokenizer": "mini", "template": "chatml", "sets": {"pairs": "somewhere"}}}
    (home / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "stages": {"sft": STAGE}}))


def imported(home: Path, *words: str, path: str = "model", out: str = "run") -> int:
    return import_main([str(home / path), "--recipe", str(home / "recipe.yaml"), "--out", str(home / out), *words])


def exported(home: Path, run: str, out: str) -> dict[str, torch.Tensor]:
    assert export_main([str(home / run), "--format", "eve_v2", "--max-shard", "20KB", "--out", str(home / out)]) == 0
    return {name: t for file in (home / out).glob("*.safetensors") for name, t in load_file(file).items()}


def test_full_size(shapes: ModuleType) -> None:
    """Every name and shape of a 7B on the meta device; as bf16 the bytes of the release's files."""
    model = ModelConfig.parse(model_of(EVE_7B, QWEN_7B, 1600))
    EveV2().fits(model)
    pairs = pair_up(EveV2(), model, slots(model), AXES)
    shutdown()
    found = {name: shape for pair in pairs for name, shape in zip(pair.theirs, pair.published_shapes(), strict=True)}
    assert found == shapes.eve_v2(EVE_7B, QWEN_7B)
    assert round(2 * sum(map(math.prod, found.values())) / 1e9, 1) == 28.3
    assert EveV2().config(model)["mm_vision_tower"] == "openai/eve-anyratio-res1600-patch16"


def test_in_and_out_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit; a second round changes no byte."""
    assert imported(home, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    published = load_file(home / "model" / "model.safetensors")
    (source,) = told["sources"]
    assert (source["format"], source["ignored"], source["tensors"]) == ("eve_v2", {}, len(published))
    assert told["parts"] == ["encoder", "connector", "injection", "decoder"] and not told["drawn"]
    assert verify_main([str(home / "run"), str(home / "model")]) == 0
    again = exported(home, "run", "out")
    assert again.keys() == published.keys() and all(torch.equal(again[name], published[name]) for name in published)
    assert imported(home, path="out", out="second") == 0
    exported(home, "second", "twice")
    names = sorted(path.name for path in (home / "out").iterdir())
    assert all((home / "out" / name).read_bytes() == (home / "twice" / name).read_bytes() for name in names)


def test_the_same_values_lie_alike_in_both_sets(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Published copies of the first weights become copies here, which is what second weights begin as."""
    file = home / "model" / "model.safetensors"
    held = load_file(file)
    save_file({name: held[name.replace("moe_", "")].clone() for name in held}, file)
    assert imported(home, "--json") == 0
    stored = Stored(Path(json.loads(capsys.readouterr().out)["checkpoint"]))
    model = ModelConfig.parse(model_of(SMALL, TEXT))
    every = {(slot.axis, slot.name): slot for slot in slots(model)}
    shutdown()
    second = [name for axis, name in every if axis == "injection"]
    assert len(second) == 7 * TEXT["layers"]
    for name in second:
        first = every["decoder", name.replace(".visual", "")]
        assert torch.equal(stored.read(every["injection", name]), stored.read(first))


def test_beside_the_weights(home: Path) -> None:
    """The keys that EVEv2's classes read, and those of its processors' published files."""
    imported(home)
    exported(home, "run", "out")
    config = json.loads((home / "out" / "config.json").read_text())
    wanted = {"model_type": "eve-qwen2", "mm_hidden_size": 12, "add_moe": True, "moe_part": "layernorm-self_attn-mlp"}
    assert wanted.items() <= config.items() and config["architectures"] == ["EVEQwen2ForCausalLM"]
    told = json.loads((home / "out" / "preprocessor_config.json").read_text())
    assert told == {
        "do_center_crop": False, "do_normalize": True, "do_resize": False, "resample": 3,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "max_size": 16, "patch_stride": 4, "dense_stride": 2,
    }  # fmt: skip


def test_one_weight_apart_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported(home)
    file = home / "model" / "model.safetensors"
    held = load_file(file)
    held["model.layers.1.moe_mlp.up_proj.weight"][3, 4] += 1
    save_file(held, file)
    capsys.readouterr()
    assert verify_main([str(home / "run"), str(home / "model"), "--json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)["differences"]
    assert found["parameter"] == "injection: decoder.layers.1.mlp.visual.linear_fc1.weight"


def test_of_a_first_stage_nothing_is_there_twice(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a model that has second weights they are drawn (as copies), for one that has none nothing is missing."""
    file = home / "model" / "model.safetensors"
    once = {name: tensor for name, tensor in load_file(file).items() if "moe_" not in name}
    save_file(once, file)
    assert imported(home, "--json", "--dry-run") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["parts"], told["drawn"]) == (["encoder", "connector", "decoder"], ["injection"])
    write_recipe(home, model_of(SMALL, TEXT, injection=INLINE))
    assert imported(home, "--json") == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == []
    again = exported(home, "run", "out")
    assert again.keys() == once.keys() and all(torch.equal(again[name], once[name]) for name in once)
    assert json.loads((home / "out" / "config.json").read_text())["add_moe"] is False


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("layers.2.self_attn.moe_k_proj.bias", None, r"lacks tensors that the model has: .*\.2\..*moe_k_proj\.bias"),
        ("layers.0.moe_input_layernorm.bias", (32,), r"tensors that the model lacks: .*moe_input_layernorm\.bias"),
        ("layers.0.moe_mlp.down_proj.weight", (32, 32), r"down_proj\.weight' is \[32, 32\], .* injection makes it"),
        ("vision_tower.patch_embedding.2.weight", (32, 12, 4, 4), r"is \[32, 12, 4, 4\], .* \[32, 12, 2, 2\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(home: Path, name: str, shape: tuple[int, ...] | None, said: str) -> None:
    file = home / "model" / "model.safetensors"
    held = {each: tensor for each, tensor in load_file(file).items() if each != f"model.{name}"}
    save_file(held | ({} if shape is None else {f"model.{name}": torch.zeros(shape).bfloat16()}), file)
    with pytest.raises(InputError, match=said):
        imported(home, "--dry-run")


@pytest.mark.parametrize(
    ("axis", "change", "said"),
    [
        ("connector", {"class_attention": True}, "connector.class_attention True: .* needs False"),
        ("connector", {"layers": 2}, "connector.layers 2: .* needs 0"),
        ("injection", {"name": "inline", "tags": "1d"}, "injection.tags 1d: .* needs none"),
    ],
)
def test_what_the_format_cannot_say_is_refused(axis: str, change: dict[str, Any], said: str) -> None:
    EveV2().fits(ModelConfig.parse(model_of(SMALL, TEXT)))
    with pytest.raises(ConfigError, match=said):
        EveV2().fits(ModelConfig.parse(model_of(SMALL, TEXT, **{axis: change})))
