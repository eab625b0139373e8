"""EVE's checkpoints in and out: every name of the release, what is left out of it, and no size of tile in them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from eve_release import (
    ALL_CLIP,
    ALL_TEXT,
    CLIP_L,
    COMPRESSOR,
    EVE_7B,
    SMALL,
    TEACHER,
    TEXT,
    TWIN,
    VICUNA_7B,
    held,
    imported,
    model_of,
    publish,
    publish_release,
    tensors_of,
    write_recipe,
)
from safetensors.torch import load_file

from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.conversion.eve import Eve
from megavlm.megatron_mm.conversion.verb import export_main, verify_main
from megavlm.platform.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, shapes: ModuleType) -> Path:
    """A small one in model/, and recipe.yaml for a model that aligns nothing."""
    return publish_release(tmp_path_factory.mktemp("eve"), shapes)


def test_names_of_the_release(shapes: ModuleType) -> None:
    """As many bytes of names as the index of EVE-7B-HD-v1.0 has, and as many of weights as its two files."""
    wanted = shapes.eve(EVE_7B, VICUNA_7B, CLIP_L)
    table = dict.fromkeys(wanted, "pytorch_model-00001-of-00002.bin")
    index = json.dumps({"metadata": {"total_size": 14_229_946_368}, "weight_map": table}, indent=2) + "\n"
    assert len(wanted) == 1159 and len(index) == 134_579
    once = {name: shape for name, shape in wanted.items() if not name.startswith(TWIN) and "inv_freq" not in name}
    assert sum(map(math.prod, once.values())) == 6_738_415_616 + 303_507_456 + 29_982_720 + 43_067_392


def test_full_size(shapes: ModuleType) -> None:
    """Every name and shape of a 7B on the meta device, without what only training needs."""
    model = ModelConfig.parse(model_of(EVE_7B, VICUNA_7B, 672))
    found = tensors_of(model)
    wanted = shapes.eve(EVE_7B, VICUNA_7B, CLIP_L)
    left = (COMPRESSOR, TEACHER)
    assert found == {name: s for name, s in wanted.items() if not name.startswith(left) and "inv_freq" not in name}
    told = Eve().config(model)
    assert (told["mm_vision_tower"], told["mm_hidden_size"]) == ("openai/eve-patch14-anypixel-672", 1024)
    assert (told["model_type"], told["requires_cliploss"]) == ("eve", False)


def test_every_name_is_accounted_for(tmp_path: Path, shapes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """All 1,159 of the release: what its decoder and its embedding are made of, and the rest with a reason."""
    publish_release(tmp_path, shapes, ALL_TEXT, ALL_CLIP)
    assert imported(tmp_path, tmp_path / "run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    (source,) = told["sources"]
    reasons = source["ignored"]
    assert len(held(tmp_path / "model")) == 1159 == source["tensors"] + len(reasons) and source["format"] == "eve"
    assert told["parts"] == ["encoder", "connector", "decoder"] and not told["drawn"]
    for begin, count, why in [
        (TWIN, 391, "the teacher once more"), (TEACHER, 391, "aligns no patches"), (COMPRESSOR, 422, ""),
        ("model.layers.", 32, "rotary"),
    ]:  # fmt: skip
        found = [reason for name, reason in reasons.items() if name.startswith(begin)]
        assert len(found) == count and all(why in reason for reason in found)
    assert verify_main([str(tmp_path / "run"), str(tmp_path / "model")]) == 0


def test_in_and_out_again(release: Path, tmp_path: Path) -> None:
    """Bit for bit without what only training needs; a second round changes no byte."""
    assert imported(release, tmp_path / "run") == 0
    words = ["--format", "eve", "--max-shard", "20KB"]
    assert export_main([str(tmp_path / "run"), *words, "--out", str(tmp_path / "out")]) == 0
    tensors = held(release / "model")
    again = {name: t for file in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(file).items()}
    assert again.keys() == {n for n in tensors if not n.startswith((COMPRESSOR, TEACHER)) and "inv_freq" not in n}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.items())
    assert imported(tmp_path, tmp_path / "second", path="out", recipe=str(release / "recipe.yaml")) == 0
    assert export_main([str(tmp_path / "second"), *words, "--out", str(tmp_path / "twice")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert all((tmp_path / "out" / n).read_bytes() == (tmp_path / "twice" / n).read_bytes() for n in names)


def test_the_same_weights_at_another_size(release: Path, tmp_path: Path) -> None:
    """HD's checkpoint says another size in its config.json, and has the same tensors."""
    write_recipe(tmp_path, model_of(SMALL, TEXT, tile=32))
    assert imported(release, tmp_path / "hd", recipe=str(tmp_path / "recipe.yaml")) == 0
    assert export_main([str(tmp_path / "hd"), "--format", "eve", "--out", str(tmp_path / "out")]) == 0
    tensors = held(release / "model")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again and all(torch.equal(tensor, tensors[name]) for name, tensor in again.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["mm_vision_tower"] == "openai/eve-patch4-anypixel-32"
    told = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    keys = ("image_size", "image_size_clip", "patch_stride", "patch_stride_clip", "conv_stride", "do_resize")
    assert [told[key] for key in keys] == [32, 16, 4, 4, 2, False]


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("split_embedding", None, r"lacks tensors that the model has: model\.vision_tower\.split_embedding"),
        ("local_attention.kv.1.weight", None, r"lacks .* model\.vision_tower\.local_attention\.kv\.1\.weight"),
        ("positions", (4, 8), r"tensors that the model lacks: model\.vision_tower\.positions"),
        ("patch_embedding.weight", (8, 3, 2, 2), r"is \[8, 3, 2, 2\], .* encoder makes it \[8, 3, 4, 4\]"),
        ("class_embedding", (1, 8), r"class_embedding' is \[1, 8\], and the model's connector"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    release: Path, tmp_path: Path, name: str, shape: tuple[int, ...] | None, said: str
) -> None:
    place = "model.vision_tower."
    tower = {each: t for each, t in held(release / "model").items() if each.startswith((place, "model.mm_projector."))}
    tower.pop(place + name, None)
    torch.save(tower | ({} if shape is None else {place + name: torch.zeros(shape).bfloat16()}), tmp_path / "pel.bin")
    with pytest.raises(InputError, match=said):
        imported(tmp_path, tmp_path / "run", "--format", "eve", path="pel.bin", recipe=str(release / "recipe.yaml"))
    assert not (tmp_path / "run").exists()


class Runs:
    """What a pickle can do when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_file_that_would_run_code_is_refused(release: Path, tmp_path: Path) -> None:
    publish(tmp_path / "model", {"model.norm.weight": torch.zeros(16), "lm_head.weight": torch.zeros(512, 16)})
    torch.save({"model.norm.weight": Runs(tmp_path / "ran")}, tmp_path / "model" / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(InputError, match=r"no file of weights alone: loading it would call (posix|os)\.mkdir"):
        imported(tmp_path, tmp_path / "run", recipe=str(release / "recipe.yaml"))
    assert not (tmp_path / "ran").exists()


def test_the_embedding_alone(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its first stage may be kept: known by its names without a config.json, the decoder from elsewhere."""
    tensors = held(release / "model")
    tower = {n: t for n, t in tensors.items() if n.startswith(("model.vision_tower.", "model.mm_projector."))}
    torch.save(tower, tmp_path / "embedding.bin")
    assert imported(release, tmp_path / "run", "--json", "--dry-run", path=str(tmp_path / "embedding.bin")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sources"][0]["format"] == "eve" and told["sources"][0]["tensors"] == 23
    assert (told["parts"], told["drawn"]) == (["encoder", "connector"], ["decoder"])


def test_one_part_of_it(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the other parts leave out is left out with their reason, and is not unexpected."""
    assert imported(release, tmp_path / "run", "--part", "connector", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    reasons = told["sources"][0]["ignored"]
    assert told["parts"] == ["connector"] and told["sources"][0]["tensors"] == 14
    assert reasons["model.layers.0.self_attn.rotary_emb.inv_freq"] == "follows from the rotary base"
    assert reasons["model.vision_tower.patch_embedding.weight"] == "of the encoder, which was not asked for"


@pytest.mark.parametrize(
    ("axis", "change", "said"),
    [
        ("encoder", {"window_attention": False}, "encoder.window_attention False: .* needs True"),
        ("encoder", {"heads": 4}, "encoder.heads 4: .* needs 8"),
        ("connector", {"class_attention": False}, "connector.class_attention False: .* needs True"),
        ("connector", {"hidden": 24}, "connector.hidden 24: .* needs 16"),
        ("injection", {"tags": "1d"}, "injection.tags 1d: .* needs none"),
        ("tiling", {"name": "square", "side_step": None}, "tiling.name square: .* needs longer_side"),
    ],
)
def test_what_the_format_cannot_say_is_refused(axis: str, change: dict[str, Any], said: str) -> None:
    model = model_of(SMALL, TEXT, **{axis: change})
    model[axis] = {key: value for key, value in model[axis].items() if value is not None}
    with pytest.raises(ConfigError, match=said):
        Eve().fits(ModelConfig.parse(model))
