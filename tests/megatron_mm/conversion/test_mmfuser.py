"""MMFuser's checkpoints in and out: gammas under their own names, and in the file where its reader looks."""

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
from megavlm.megatron_mm.conversion.mmfuser import MMFuser
from megavlm.megatron_mm.conversion.ours import slots
from megavlm.megatron_mm.conversion.verb import export_main, import_main, verify_main
from megavlm.platform.errors import ConfigError, InputError

CLIP_L = {"image_size": 336, "patch_size": 14, "layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096}
SMALL = {"image_size": 28, "patch_size": 7, "layers": 7, "hidden": 32, "heads": 4, "ffn": 48}
VICUNA_7B = {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 32, "ffn": 11008, "vocab": 32000}
TEXT = {"layers": 2, "hidden": 48, "heads": 4, "kv_heads": 4, "ffn": 64, "vocab": 512, "max_positions": 512}
STAGE = {
    "train": ["connector"], "steps": 1, "optimizer": {"lr": 1e-3},
    "mixture": {"weights": {"pairs": 1}, "sequence_length": 512, "packs_per_batch": 1},
}  # fmt: skip
PROJECTOR, TOWER = "model.mm_projector.", "model.vision_tower."
FUSER = 5_190_592  # parameters of the published block


def model_of(sight: dict[str, Any], text: dict[str, Any], layers: list[int], /, **axes: Any) -> dict[str, Any]:
    return {
        "tiling": {"name": "square", "tile": sight["image_size"]},
        "encoder": {"name": "clip", **sight, "layer": layers} | axes.get("encoder", {}),
        "connector": {"name": "mmfuser"} | axes.get("connector", {}),
        "injection": {"name": "inline", "tags": "none"},
        "decoder": {"name": "llama", "rope_base": 1e4, "norm_eps": 1e-5, "max_positions": 512} | text,
    }


def small(**axes: Any) -> dict[str, Any]:
    """Layers 1, 2, 3, 4 -> 6 of 7, so that one is behind."""
    return model_of(SMALL, TEXT, [1, 2, 3, 4, 6], **axes)


def test_full_size(shapes: ModuleType) -> None:
    """Every name and shape of a 7B on the meta device; the fuser has the published count."""
    model = ModelConfig.parse(model_of(CLIP_L, VICUNA_7B, [3, 8, 13, 18, 23]))
    MMFuser().fits(model)
    pairs = pair_up(MMFuser(), model, slots(model), AXES)
    shutdown()
    found = {name: shape for pair in pairs for name, shape in zip(pair.theirs, pair.published_shapes(), strict=True)}
    found |= {constant.name: constant.shape for constant in MMFuser().constants(model)}
    assert found == shapes.mmfuser(CLIP_L, VICUNA_7B)
    assert sum(math.prod(shape) for name, shape in found.items() if name.startswith(f"{PROJECTOR}0.")) == FUSER
    assert MMFuser().config(model)["mm_vision_select_layer"] == [-22, -17, -12, -7, -2]


@pytest.fixture
def home(tmp_path: Path, shapes: ModuleType) -> Path:
    """A small checkpoint in tmp_path/model, as one file, and recipe.yaml."""
    torch.set_num_threads(1)
    recipe = {"model": small(), "data": {"tokenizer": "mini", "template": "vicuna_v1", "sets": {"pairs": "somewhere"}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "stages": {"sft": STAGE}}))
    draw = torch.Generator().manual_seed(1)
    (tmp_path / "model").mkdir()
    save_file(
        {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in shapes.mmfuser(SMALL, TEXT).items()},
        tmp_path / "model" / "model.safetensors",
    )
    config = {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "hidden_size": 48,
        "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": [-7, -6, -5, -4, -2],
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "unfreeze_mm_vision_tower": True,
    }  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return tmp_path


def imported(home: Path, *words: str, path: str = "model", out: str = "run") -> int:
    return import_main([str(home / path), "--recipe", str(home / "recipe.yaml"), "--out", str(home / out), *words])


def edit(home: Path, **keys: Any) -> None:
    file = home / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def behind(name: str) -> bool:
    """Whether a tensor lies behind the last layer that is read."""
    return "layers.6." in name and "vision_tower" in name or "post_layernorm" in name


def test_in_and_out_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, gammas under their own names and in the last file; a second round changes no byte."""
    assert imported(home, "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["sources"]
    published = load_file(home / "model" / "model.safetensors")
    assert told["format"] == "mmfuser" and set(told["ignored"]) == {name for name in published if behind(name)}
    assert verify_main([str(home / "run"), str(home / "model")]) == 0
    words = ["--format", "mmfuser", "--max-shard", "120KB"]
    assert export_main([str(home / "run"), *words, "--out", str(home / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    files = told["files"]
    again = {name: tensor for file in files for name, tensor in load_file(home / "out" / file).items()}
    assert {name: t.shape for name, t in again.items()} == {name: t.shape for name, t in published.items()}
    assert all(torch.equal(again[name], tensor) for name, tensor in published.items() if not behind(name))
    last = load_file(home / "out" / files[-1])
    assert len(files) > 1 and {f"{PROJECTOR}0.gamma1", f"{PROJECTOR}0.gamma2"} <= last.keys()
    assert bool(told["notes"]) == (len(files) not in (3, 6))
    assert imported(home, path="out", out="second") == 0
    assert export_main([str(home / "second"), *words, "--out", str(home / "twice")]) == 0
    names = sorted(path.name for path in (home / "out").iterdir())
    assert all((home / "out" / name).read_bytes() == (home / "twice" / name).read_bytes() for name in names)


def test_the_layers_behind_change_nothing(home: Path) -> None:
    """transformers' class loads the exported tower, and its last layer gives what it is given."""
    from megavlm.kernels import torchvision

    torchvision.load()
    from transformers import CLIPVisionConfig, CLIPVisionModel

    imported(home)
    export_main([str(home / "run"), "--format", "mmfuser", "--dtype", "float32", "--out", str(home / "out")])
    prefix = f"{TOWER}vision_tower.vision_model."
    held = load_file(home / "out" / "model.safetensors")
    tower = CLIPVisionModel(CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=7, num_attention_heads=4, image_size=28, patch_size=7,
    )).eval()  # fmt: skip
    state = {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}
    tower.load_state_dict(state)
    with torch.no_grad():
        states = tower(torch.randn(1, 3, 28, 28), output_hidden_states=True).hidden_states
    assert torch.equal(states[7], states[6]) and not torch.equal(states[6], states[5])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_how_many_files_its_reader_knows(count: int) -> None:
    told = MMFuser().notes(["file"] * count)
    assert bool(told) == (count not in (3, 6)) and all(f"this is {count}" in note for note in told)


def test_without_a_vision_tower(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its training saves it where CLIP is frozen, and as its first stage saves the projector."""
    held = load_file(home / "model" / "model.safetensors")
    file = home / "model" / "model.safetensors"
    save_file({name: tensor for name, tensor in held.items() if not name.startswith(TOWER)}, file)
    assert imported(home, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["parts"], told["drawn"]) == (["connector", "decoder"], ["encoder"])
    alone = home / "mm_projector.bin"
    torch.save({name: tensor for name, tensor in held.items() if name.startswith(PROJECTOR)}, alone)
    assert imported(home, "--json", path=alone.name, out="alone") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sources"][0]["format"] == "mmfuser" and told["parts"] == ["connector"]


def test_a_gamma_that_was_renamed_is_missed(home: Path) -> None:
    """As transformers names it when it saves what it loaded: nothing is guessed."""
    file = home / "model" / "model.safetensors"
    held = load_file(file)
    held[f"{PROJECTOR}0.weight1"] = held.pop(f"{PROJECTOR}0.gamma1")
    save_file(held, file)
    with pytest.raises(InputError, match="lacks tensors that the model has: .*gamma1"):
        imported(home)


def test_other_layers_are_refused(home: Path) -> None:
    edit(home, mm_vision_select_layer=[-6, -5, -4, -3, -2])
    with pytest.raises(ConfigError, match="mm_vision_select_layer .* comes to"):
        imported(home)


@pytest.mark.parametrize(
    ("axis", "change", "said"),
    [
        ("connector", {"attention": "global"}, "connector.attention global: .* needs deformable"),
        ("connector", {"points": 2}, "connector.points 2: .* needs 4"),
        ("connector", {"self_attention": False}, "connector.self_attention False"),
        ("connector", {"hidden": 64}, "connector.hidden 64: .* needs 48"),
        ("encoder", {"class_token": "dropped"}, "encoder.class_token dropped: .* needs in_layers"),
        ("encoder", {"trained_size": 56}, "encoder.trained_size 56: .* not resized"),
    ],
)
def test_what_the_format_cannot_say_is_refused(axis: str, change: dict[str, Any], said: str) -> None:
    MMFuser().fits(ModelConfig.parse(small()))
    with pytest.raises(ConfigError, match=said):
        MMFuser().fits(ModelConfig.parse(small(**{axis: change})))
