"""NVEagle's checkpoints in and out: names, shapes and values of all towers, and what no feature depends on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
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
from megavlm.megatron_mm.conversion.eagle import Eagle
from megavlm.megatron_mm.conversion.ours import slots
from megavlm.megatron_mm.conversion.verb import export_main, import_main, verify_main
from megavlm.platform.errors import ConfigError, InputError

FULL: dict[str, dict[str, Any]] = {
    "clip": {"image_size": 336, "patch_size": 14, "layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096},
    "convnext": {"image_size": 1024, "depths": [3, 4, 30, 3], "dims": [384, 768, 1536, 3072]},
    "sam": {
        "image_size": 1024, "patch_size": 16, "layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096, "window": 14,
        "global_layers": [5, 11, 17, 23], "neck_channels": 256,
    },
    "eva02": {
        "image_size": 1024, "trained_size": 224, "patch_size": 16, "layers": 24, "hidden": 1024, "heads": 16,
        "ffn": 2730, "window": 16,
    },
    "pix2struct": {
        "image_size": 1024, "patch_size": 16, "positions": 4096, "layers": 18, "hidden": 1536, "heads": 24, "ffn": 3968,
    },
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "clip": {"image_size": 28, "patch_size": 7, "layers": 2, "hidden": 32, "heads": 4, "ffn": 48},
    "convnext": {"image_size": 64, "depths": [1, 2, 2, 1], "dims": [8, 12, 16, 24]},
    "sam": {
        "image_size": 64, "patch_size": 16, "layers": 2, "hidden": 32, "heads": 4, "ffn": 48, "window": 3,
        "global_layers": [1], "neck_channels": 8,
    },
    "eva02": {
        "image_size": 64, "trained_size": 32, "patch_size": 16, "layers": 3, "hidden": 32, "heads": 4, "ffn": 40,
        "window": 2,
    },
    "pix2struct": {
        "image_size": 64, "patch_size": 16, "positions": 8, "max_patches": 16, "layers": 2, "hidden": 16, "heads": 4,
        "ffn": 48,
    },
}  # fmt: skip
KEYS = {"clip": "clip", "convnext": "convnext", "sam": "sam", "eva02": "eva", "pix2struct": "pix2struct"}
EAGLES = {"clip": {"layer": -1, "class_token": "dropped"}}  # what Eagle asks for besides sizes
TEXT = {"layers": 2, "hidden": 48, "heads": 4, "kv_heads": 4, "ffn": 64, "vocab": 512, "max_positions": 512}
VICUNA_7B = {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 32, "ffn": 11008, "vocab": 32000}
VICUNA_13B = {"layers": 40, "hidden": 5120, "heads": 40, "kv_heads": 40, "ffn": 13824, "vocab": 32000}
X5, X4 = list(FULL), [name for name in FULL if name != "sam"]
CHANNELS = {"X5": 32 + 24 + 4 * 8 + 32 + 16, "X4": 32 + 24 + 32 + 16}
STAGE = {
    "train": ["connector"], "steps": 1, "optimizer": {"lr": 1e-3},
    "mixture": {"weights": {"pairs": 1}, "sequence_length": 512, "packs_per_batch": 1},
}  # fmt: skip
ROTARY = "follows from the window and the grid"


def model_of(use: list[str], sizes: dict[str, Any], decoder: dict[str, Any], **axes: Any) -> dict[str, Any]:
    """A recipe's `model`, its experts written in another order than they are used."""
    experts = {KEYS[name]: {"name": name, **of, **EAGLES.get(name, {})} for name, of in reversed(sizes.items())}
    side = sizes["convnext"]["image_size"]
    encoder = {"name": "mixture", "image_size": side, "experts": experts, "use": [KEYS[name] for name in use]}
    return {
        "tiling": {"name": "square", "tile": side},
        "encoder": encoder | {"normalisation": "shared"} | axes.get("encoder", {}),
        "connector": {"name": "channel_concat", "grid": side // 32} | axes.get("connector", {}),
        "injection": {"name": "inline", "tags": "none"} | axes.get("injection", {}),
        "decoder": {"name": "llama", "rope_base": 1e4, "norm_eps": 1e-5, "max_positions": 512} | decoder,
    }


def named(use: list[str], sizes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, **sizes[name]} for name in use]


@pytest.fixture
def tensors() -> Iterator[Callable[[ModelConfig], dict[str, tuple[int, ...]]]]:
    """Names and shapes that an export of a model has, which stays on the meta device."""

    def make(model: ModelConfig) -> dict[str, tuple[int, ...]]:
        Eagle().fits(model)
        fmt = Eagle().of(model)
        pairs = pair_up(fmt, model, slots(model), AXES)
        found = {
            name: shape for pair in pairs for name, shape in zip(pair.theirs, pair.published_shapes(), strict=True)
        }
        still = {constant.name: constant.shape for constant in fmt.constants(model)}
        assert not still.keys() & found.keys()
        return found | still

    yield make
    shutdown()


@pytest.mark.parametrize(
    ("use", "decoder", "channels", "count", "gigabytes"),
    [(X5, VICUNA_7B, 7680, 2086, None), (X4, VICUNA_7B, 6656, 1744, None), (X5, VICUNA_13B, 7680, 2158, 30.7)],
    ids=["x5-7b", "x4-7b", "x5-13b"],
)
def test_full_size(
    tensors: Callable[..., Any], shapes: ModuleType, use: list[str], decoder: Any, channels: int, count: int,
    gigabytes: float | None,
) -> None:  # fmt: skip
    """Every name and shape of the release; X5-13B has the bytes of its files."""
    found = tensors(ModelConfig.parse(model_of(use, FULL, decoder)))
    assert found == shapes.eagle(named(use, FULL), decoder, channels) and len(found) == count
    size = 2 * sum(math.prod(shape) for shape in found.values()) / 1e9
    assert gigabytes is None or round(size, 1) == gigabytes
    counts = dict.fromkeys(use, 0)
    for name in found:
        if "vision_towers." in name:
            counts[use[int(name.split(".")[3])]] += 1
    wanted = {"clip": 391, "convnext": 380, "sam": 342, "eva02": 511, "pix2struct": 167}
    assert counts == {name: wanted[name] for name in use}


@pytest.fixture(params=["X5", "X4"])
def release(request: pytest.FixtureRequest, tmp_path: Path, shapes: ModuleType) -> tuple[Path, list[str]]:
    """A small release in tmp_path/model, as bf16 in three files with an index, and its towers; recipe.yaml."""
    torch.set_num_threads(1)
    use = X5 if request.param == "X5" else X4
    model = model_of(use, SMALL, TEXT)
    recipe = {"model": model, "data": {"tokenizer": "mini", "template": "vicuna_v1", "sets": {"pairs": "somewhere"}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "stages": {"sft": STAGE}}))
    draw = torch.Generator().manual_seed(1)
    asked = shapes.eagle(named(use, SMALL), TEXT, CHANNELS[request.param])
    drawn = {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in asked.items()}
    publish(tmp_path / "model", drawn)
    towers = {"clip": "clip-448", "convnext": "convnext-1024", "sam": "sam-1024", "eva02": "det-1024"}
    config = {
        "architectures": ["EagleLlamaForCausalLM"], "model_type": "eagle_llama", "hidden_size": 48,
        "mm_hidden_size": CHANNELS[request.param], "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
        "mm_vision_tower": ";".join(towers.get(name, "pix2struct-1024") for name in use), "rope_theta": 10000.0,
        "mm_patch_merge_type": "flat", "mm_use_im_start_end": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return tmp_path, use


def publish(folder: Path, tensors: dict[str, torch.Tensor], files: int = 3) -> None:
    folder.mkdir()
    names = sorted(tensors)
    where = {name: f"model-{1 + i % files:05d}-of-{files:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def held(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def imported(home: Path, *words: str, path: str = "model", out: str = "run") -> int:
    return import_main([str(home / path), "--recipe", str(home / "recipe.yaml"), "--out", str(home / out), *words])


def depends(name: str) -> bool:
    """Whether a feature depends on a released tensor."""
    return not any(part in name for part in ("class_embedding", "post_layernorm", ".head.", "rope"))


def test_in_and_out_again(release: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit what was released, under the same names; a second round changes no byte."""
    home, use = release
    assert imported(home, "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["sources"]
    published = held(home / "model")
    assert (told["format"], told["parts"]) == ("eagle", ["encoder", "connector", "decoder"])
    assert set(told["ignored"]) == {name for name in published if not depends(name)}
    assert {why for name, why in told["ignored"].items() if "rope" in name} == {ROTARY}
    assert verify_main([str(home / "run"), str(home / "model")]) == 0
    words = ["--format", "eagle", "--max-shard", "60KB"]
    assert export_main([str(home / "run"), *words, "--out", str(home / "out")]) == 0
    again = held(home / "out")
    assert {name: t.shape for name, t in again.items()} == {name: t.shape for name, t in published.items()}
    assert all(torch.equal(again[name], tensor) for name, tensor in published.items() if depends(name))
    assert any(name.endswith("stages.1.blocks.1.weight") for name in again) and not any("gamma" in n for n in again)
    shutdown()
    assert imported(home, path="out", out="second") == 0
    assert export_main([str(home / "second"), *words, "--out", str(home / "twice")]) == 0
    files = sorted(path.name for path in (home / "out").iterdir())
    assert [path.name for path in sorted((home / "twice").iterdir())] == files and len(files) > 4
    assert all((home / "out" / name).read_bytes() == (home / "twice" / name).read_bytes() for name in files)


def rotary(side: int, width: int, reach: int = 16) -> torch.Tensor:
    """Angles [side * side, width]: the first half turns with the row, the second with the column, each pair alike."""
    angles = torch.zeros(side, side, width, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for i in range(width):
                half, place = divmod(i, width // 2)
                position = (column if half else row) / side * reach
                angles[row, column, i] = position / 10000 ** (place // 2 * 2 / (width // 2))
    return angles.view(-1, width)


def test_what_an_export_adds(release: tuple[Path, list[str]]) -> None:
    """Nothing that is read: norms that only normalise, zeros, and the angles of rotary positions."""
    home, use = release
    imported(home)
    export_main([str(home / "run"), "--format", "eagle", "--dtype", "float32", "--out", str(home / "out")])
    added = {name: tensor for name, tensor in held(home / "out").items() if not depends(name)}
    assert len(added) == 3 + 4 + 2 * (2 + 3)
    angles = {"rope_win": rotary(2, 8), "rope_glb": rotary(4, 8)}
    angles |= {"blocks.0.attn.rope": angles["rope_win"], "blocks.2.attn.rope": angles["rope_glb"]}
    angles["blocks.1.attn.rope"] = angles["rope_win"]
    for name, tensor in added.items():
        module, kind = name.split("vision_tower.")[-1].rsplit(".", 1)
        if module in angles:
            wanted = angles[module].cos() if kind == "freqs_cos" else angles[module].sin()
            torch.testing.assert_close(tensor, wanted.float(), rtol=0, atol=1e-6)
        else:
            assert tensor.eq(1.0 if "norm" in module and kind == "weight" else 0.0).all(), name
    config = json.loads((home / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("eagle_llama", ["EagleLlamaForCausalLM"])
    assert config["mm_vision_tower"].split(";")[-2:] == ["det-1024", "pix2struct-1024"]
    assert (config["tokenizer_model_max_length"], config["mm_use_im_patch_token"]) == (512, False)
    assert config["mm_hidden_size"] == CHANNELS["X5" if "sam" in use else "X4"]


@pytest.mark.parametrize("release", ["X4"], indirect=True)
def test_old_files_are_not_read_and_are_named(
    release: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """As in NVEagle/Eagle-X5-13B, the old ones with other values and with tensors of other names."""
    home, _ = release
    published = held(home / "model")
    old = {name: torch.zeros_like(tensor) for name, tensor in published.items()} | {"other": torch.ones(3)}
    save_file(old, home / "model" / "model-00003-of-00003_old.safetensors")
    names = dict.fromkeys(old, "model-00003-of-00003_old.safetensors")
    (home / "model" / "model.safetensors.index_old.json").write_text(json.dumps({"weight_map": names}))
    assert imported(home) == 0
    said = capsys.readouterr().out
    assert "not read: model-00003-of-00003_old.safetensors, since model.safetensors.index.json does not" in said
    assert "not read: model.safetensors.index_old.json" in said
    export_main([str(home / "run"), "--format", "eagle", "--out", str(home / "out")])
    again = held(home / "out")
    assert "other" not in again and all(torch.equal(again[n], t) for n, t in published.items() if depends(n))


@pytest.mark.parametrize("release", ["X4"], indirect=True)
def test_the_projector_of_a_first_stage(release: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """mm_projector.bin beside a config.json, and alone."""
    home, _ = release
    weights = {name: t for name, t in held(home / "model").items() if "mm_projector" in name}
    (home / "first").mkdir()
    torch.save(weights, home / "first" / "mm_projector.bin")
    for path in ("first", "first/mm_projector.bin"):
        out = f"run-{Path(path).suffix}"
        assert imported(home, "--json", path=path, out=out) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["parts"], told["drawn"]) == (["connector"], ["encoder", "decoder"])
        assert verify_main([str(home / out), str(home / path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["equal"]


@pytest.mark.parametrize("release", ["X4"], indirect=True)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.vision_tower.vision_towers.4.vision_tower.pos_embed", "that the model lacks: .*towers.4"),
        ("model.image_newline", "that the model lacks: model.image_newline"),
        ("model.vision_tower.vision_towers.2.vision_tower.blocks.3.attn.k_bias", "the model lacks: .*k_bias"),
    ],
)
def test_unknown_tensors_are_refused(release: tuple[Path, list[str]], name: str, said: str) -> None:
    home, _ = release
    publish(home / "more", held(home / "model") | {name: torch.ones(3).bfloat16()})
    with pytest.raises(InputError, match=said):
        imported(home, "--format", "eagle", path="more")


@pytest.mark.parametrize("release", ["X5"], indirect=True)
def test_another_order_of_towers_is_refused(release: tuple[Path, list[str]]) -> None:
    home, _ = release
    with pytest.raises(ConfigError, match="mm_vision_tower clip-448;convnext-1024;sam-1024.* comes to sam-1024"):
        imported(home, "model.encoder.use=[sam,clip,convnext,eva,pix2struct]")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder": {"normalisation": "own"}}, "encoder.normalisation own: .* needs shared"),
        ({"connector": {"hidden": 64}}, "connector.hidden 64: .* needs 48"),
        ({"connector": {"layers": 1}}, "connector.layers 1: .* needs 2"),
        ({"injection": {"tags": "1d"}}, "injection.tags 1d: .* needs none"),
        ({"connector": {"name": "sequence_append"}}, "connector.name sequence_append: .* needs channel_concat"),
        (
            {"clip": {"image_size": 56, "trained_size": 28}},
            "clip.trained_size 28: .* the size of its table",
        ),
        ({"clip": {"class_token": "in_layers"}}, "experts.clip.class_token in_layers: .* needs dropped"),
        ({"clip": {"layer": -2}}, "experts.clip.layer -2: .* needs -1"),
        ({"sam": {"neck": "published"}}, "experts.sam.neck published: .* needs short"),
        ({"sam": {"unshuffle": 1}}, "experts.sam.unshuffle 1: .* needs 2"),
    ],
)
def test_what_the_format_cannot_say_is_refused(change: dict[str, Any], said: str) -> None:
    tree = model_of(X5, SMALL, TEXT)
    Eagle().fits(ModelConfig.parse(tree))
    for part, keys in change.items():
        of = tree["encoder"]["experts"][part] if part in KEYS else tree[part]
        of |= keys
    if "grid" in tree["connector"] and tree["connector"]["name"] != "channel_concat":
        tree["connector"] = change["connector"]
    with pytest.raises(ConfigError, match=said):
        Eagle().fits(ModelConfig.parse(tree))


def test_an_expert_that_it_does_not_have() -> None:
    tree = model_of(X4, SMALL, TEXT)
    tree["encoder"]["experts"]["more"] = {"name": "siglip", **SMALL["clip"]}
    tree["encoder"]["use"] = None
    with pytest.raises(ConfigError, match="no tower for expert more, siglip"):
        Eagle().fits(ModelConfig.parse(tree))
