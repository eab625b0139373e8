"""EVA-02's .pth, and other experts' weights: read without running anything, alone and into a mixture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.conversion.start import fill_parts
from megavlm.megatron_mm.conversion.verb import export_main, import_main, verify_main
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, InputError

EVA = {
    "name": "eva02", "image_size": 64, "trained_size": 32, "patch_size": 16, "layers": 3, "hidden": 32, "heads": 4,
    "ffn": 40, "window": 2,
}  # fmt: skip
CLIP = {"name": "clip", "image_size": 28, "patch_size": 7, "layers": 2, "hidden": 32, "heads": 4, "ffn": 48}
CONVNEXT = {"name": "convnext", "image_size": 64, "depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
SAM = {
    "name": "sam", "image_size": 64, "patch_size": 16, "layers": 2, "hidden": 32, "heads": 4, "ffn": 48, "window": 3,
    "global_layers": [1], "neck_channels": 8,
}  # fmt: skip
PIX2STRUCT = {
    "name": "pix2struct", "image_size": 64, "patch_size": 16, "positions": 8, "max_patches": 16, "layers": 1,
    "hidden": 16, "heads": 4, "ffn": 48,
}  # fmt: skip
DINO = {
    "name": "dinov2", "image_size": 28, "trained_size": 28, "patch_size": 7, "layers": 2, "hidden": 32, "heads": 4,
    "ffn": 64, "registers": 2,
}  # fmt: skip
EXPERTS = {"clip": CLIP, "convnext": CONVNEXT, "sam": SAM, "eva": EVA, "pix2struct": PIX2STRUCT, "dino": DINO}
TEXT = {
    "name": "llama", "layers": 1, "hidden": 48, "heads": 4, "kv_heads": 4, "ffn": 64, "vocab": 512,
    "max_positions": 512, "rope_base": 1e4, "norm_eps": 1e-5,
}  # fmt: skip
STAGE = {
    "train": ["connector"], "steps": 1, "optimizer": {"lr": 1e-3},
    "mixture": {"weights": {"pairs": 1}, "sequence_length": 512, "packs_per_batch": 1},
}  # fmt: skip
DETECTOR = {"backbone.simfp_2.0.weight": (4, 4), "roi_heads.box.fc1.weight": (2, 2), "pixel_mean": (3, 1, 1)}
NET = "backbone.net."


class Runs:
    """What a pickle can do when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def write_recipe(home: Path, encoder: dict[str, Any], connector: dict[str, Any]) -> None:
    model = {
        "tiling": {"tile": encoder["image_size"]}, "encoder": encoder, "connector": connector,
        "injection": {"name": "inline", "tags": "none"}, "decoder": TEXT,
    }  # fmt: skip
    data = {"tokenizer": "mini", "template": "vicuna_v1", "sets": {"pairs": "somewhere"}}
    (home / "recipe.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "stages": {"sft": STAGE}}))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """recipe.yaml of a model that sees with EVA-02 alone."""
    torch.set_num_threads(1)
    write_recipe(tmp_path, EVA, {"name": "mlp"})
    yield tmp_path
    backend.shutdown()


@pytest.fixture
def detector(shapes: ModuleType) -> dict[str, Tensor]:
    """Weights as the detector's checkpoint names them."""
    return drawn(shapes.under(NET, shapes.eva02(EVA)) | DETECTOR, seed=1)


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def imported(home: Path, *words: str) -> int:
    return import_main([*words, "--recipe", str(home / "recipe.yaml"), "--out", str(home / "run")])


def loaded(home: Path) -> VisionLanguageModel:
    """The recipe's model with every parameter -7, then filled from the run."""
    spec = StageData.of(load_recipe(str(home / "recipe.yaml")), "sft")
    backend.init_distributed(Parallel(), seed=1)
    model = build_model(spec.model, backend.build_context(Parallel(), "fp32"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-7.0)
    fill_parts(model, home / "run" / "checkpoints" / "sft" / "step-000000")
    return model


@pytest.mark.parametrize("entry", ["ema_state", "module", "both", "flat"])
def test_either_entry(home: Path, detector: dict[str, Tensor], entry: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The averaged weights where there are both; rotary tables and the detector's other parts are said."""
    other = {name: -tensor for name, tensor in detector.items()}
    held: dict[str, Any] = {"iteration": 7, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    held |= {"ema_state": detector, "module": other} if entry == "both" else {entry: detector}
    torch.save(detector if entry == "flat" else held, home / "eva.pth")
    assert imported(home, str(home / "eva.pth"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    (source,) = told["sources"]
    assert (source["format"], told["drawn"]) == ("eva02", ["connector", "decoder"])
    said = source["ignored"]
    assert {name for name in said if name.startswith(NET)} == {name for name in detector if "rope" in name}
    assert {name: why for name, why in said.items() if not name.startswith(NET)} == dict.fromkeys(
        DETECTOR, "of the detector"
    )
    unused = [] if entry == "flat" else [name for name in held if name not in {entry, "ema_state"}]
    assert list(source["unused"]) == [f"eva.pth: {name}" for name in unused]
    model = loaded(home)
    found = dict(model.tower.encoder.named_parameters())
    wanted = {name.removeprefix(NET): t for name, t in detector.items() if name.startswith(NET) and "rope" not in name}
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(bool(p.eq(-7.0).all()) for p in model.tower.connector.parameters())
    assert verify_main([str(home / "run"), str(home / "eva.pth")]) == 0


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_with_code_is_refused_by_what_it_asks_for(
    home: Path, detector: dict[str, Tensor], archive: bool
) -> None:
    mark = home / "it-ran"
    held = {"ema_state": detector, "config": Runs(mark)}
    torch.save(held, home / "eva.pth", _use_new_zipfile_serialization=archive)
    with pytest.raises(InputError, match=r"is no file of weights alone: loading it would call posix\.mkdir") as raised:
        imported(home, str(home / "eva.pth"))
    assert raised.value.where == str(home / "eva.pth") and not mark.exists() and not (home / "run").exists()


def test_what_is_no_weight_in_the_entry(home: Path, detector: dict[str, Tensor]) -> None:
    torch.save({"ema_state": {**detector, "decay": 0.9999}}, home / "eva.pth")
    with pytest.raises(InputError, match="something else than tensors"):
        imported(home, str(home / "eva.pth"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{NET}blocks.3.norm1.weight": (32,)}, r"that the model lacks: backbone\.net\.blocks\.3\.norm1"),
        ({f"{NET}pos_embed": (1, 197, 32)}, r"pos_embed' is \[1, 197, 32\], and the model's encoder makes it \[1, 5,"),
    ],
)
def test_another_backbone_is_refused(
    home: Path, detector: dict[str, Tensor], change: dict[str, tuple[int, ...]], said: str
) -> None:
    torch.save({"module": detector | drawn(change, seed=2)}, home / "eva.pth")
    with pytest.raises(InputError, match=said):
        imported(home, str(home / "eva.pth"))


def test_it_is_not_written(home: Path, detector: dict[str, Tensor]) -> None:
    torch.save(detector, home / "eva.pth")
    imported(home, str(home / "eva.pth"))
    with pytest.raises(ConfigError, match="eva02 is read, and not written"):
        export_main([str(home / "run"), "--format", "eva02", "--out", str(home / "out")])


def saved(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> str:
    """A folder as downloaded."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def publish_experts(home: Path, shapes: ModuleType, detector: dict[str, Tensor]) -> list[str]:
    """Every expert's own release, each with what it has besides."""
    torch.save({"module": detector}, home / "eva.pth")
    convnext = {name.replace(".weight", ".gamma") if ".blocks." in name and name.count(".") == 4 else name: shape
                for name, shape in shapes.convnext(CONVNEXT).items()}  # fmt: skip
    open_clip = shapes.under("visual.trunk.", convnext) | {"logit_scale": (), "text_projection": (3, 3)}
    sam = shapes.under("vision_encoder.", shapes.sam(SAM) | {"neck.conv2.weight": (8, 8, 3, 3)})
    pix2struct = shapes.under("encoder.", shapes.pix2struct(PIX2STRUCT)) | {"decoder.final_layer_norm.weight": (16,)}
    return [
        saved(home / "clip", drawn(shapes.clip(CLIP), 2), {"architectures": ["CLIPVisionModel"]}),
        saved(home / "convnext", drawn(open_clip, 3)),
        saved(home / "sam", drawn(sam | {"mask_decoder.w": (2,)}, 4), {"architectures": ["SamModel"]}),
        str(home / "eva.pth"),
        saved(home / "p2s", drawn(pix2struct, 5), {"architectures": ["Pix2StructForConditionalGeneration"]}),
    ]


def dino(folder: Path) -> str:
    """transformers' own class, which saves the published names."""
    from megavlm.kernels import torchvision

    torchvision.load()
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=28, patch_size=7,
        num_register_tokens=2,
    )  # fmt: skip
    torch.manual_seed(3)
    model = Dinov2WithRegistersModel(config)
    model.save_pretrained(folder)
    assert any("attention.attention.query" in name for name in load_file(folder / "model.safetensors"))
    return str(folder)


def test_the_experts_of_a_mixture(
    home: Path, shapes: ModuleType, detector: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Six releases make one checkpoint: every expert's weights are its own, and what nobody published stays drawn."""
    clip = {**CLIP, "layer": -1, "class_token": "dropped"}
    mixture = {"name": "mixture", "image_size": 64, "experts": EXPERTS | {"clip": clip}}
    write_recipe(home, mixture, {"name": "channel_concat", "grid": 2})
    paths = [*publish_experts(home, shapes, detector), dino(home / "dino")]
    capsys.readouterr()
    assert imported(home, *paths, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    formats = [source["format"] for source in told["sources"]]
    assert formats == ["clip", "convnext", "sam", "eva02", "pix2struct", "dinov2"]
    assert told["drawn"] == ["encoder.experts.sam.neck", "connector", "decoder"]
    encoder = loaded(home).tower.encoder
    held = {name: load_file(home / name / "model.safetensors") for name in ("clip", "convnext", "sam", "p2s", "dino")}
    held["eva"] = detector
    for name, parameter in encoder.named_parameters():
        _, key, inside = name.split(".", 2)
        if key == "sam" and inside.startswith("neck."):
            assert bool(parameter.eq(-7.0).all())
            continue
        prefix = {"convnext": "visual.trunk.", "sam": "vision_encoder.", "eva": NET, "pix2struct": "encoder."}
        inside = prefix.get(key, "") + inside
        for ours, theirs in {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value",
                             "o_proj": "output.dense"}.items():  # fmt: skip
            inside = inside.replace(ours, theirs) if key == "dino" else inside
        assert torch.equal(parameter, held["p2s" if key == "pix2struct" else key][inside]), name


def test_one_expert_twice(home: Path, shapes: ModuleType, detector: dict[str, Tensor]) -> None:
    """Two releases of one, or two experts of one release, leave open which is meant."""
    torch.save(detector, home / "eva.pth")
    mixture = {"name": "mixture", "image_size": 64, "experts": {"eva": EVA, "clip": CLIP}}
    write_recipe(home, mixture, {"name": "channel_concat", "grid": 2})
    with pytest.raises(ConfigError, match=r"both hold encoder: experts\.eva\."):
        imported(home, str(home / "eva.pth"), str(home / "eva.pth"))
    for experts, said in (({"a": EVA, "b": EVA}, "and 2 of the mixture's"), ({"clip": CLIP}, "and 0 of the mixture's")):
        write_recipe(home, mixture | {"experts": experts}, {"name": "channel_concat", "grid": 2})
        with pytest.raises(ConfigError, match=said):
            imported(home, str(home / "eva.pth"))
