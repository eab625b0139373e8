"""EVE's aligning layer and its teacher in and out: of two names one, and what training alone needs may be absent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from eve_release import (
    ALL_CLIP,
    ALL_TEXT,
    CLIP,
    CLIP_L,
    COMPRESSOR,
    EVE_7B,
    TEACHER,
    TWIN,
    VICUNA_7B,
    aligned,
    held,
    imported,
    model_of,
    publish_release,
    tensors_of,
    write_recipe,
)
from safetensors.torch import load_file, save_file

from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.conversion.eve import Eve
from megavlm.megatron_mm.conversion.verb import export_main, verify_main
from megavlm.platform.errors import ConfigError

# config.json of BAAI/EVE-7B-v1.0; and what of it a training leaves behind.
PUBLISHED = {
    "architectures": ["EVELlamaForCausalLM"], "model_type": "eve", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_scaling": None, "tie_word_embeddings": False,
    "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/eve-patch14-anypixel-672", "requires_cliploss": True, "tune_mm_mlp_adapter": False,
    "mm_vision_tower_clip": "openai/clip-vit-large-patch14-336", "use_mm_proj": True,
}  # fmt: skip
OF_TRAINING = {"mm_projector_lr": 2e-5, "vision_tower_lr": 2e-5, "image_aspect_ratio": "square", "pad_token_id": 0}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, shapes: ModuleType) -> Path:
    """A small one in model/."""
    return publish_release(tmp_path_factory.mktemp("eve"), shapes)


def test_full_size_with_aligning(shapes: ModuleType) -> None:
    """The release's names but for the buffers and the teacher's second name; index 0 is of the last layer."""
    layer = {"name": "patch_aligning", "width": 1024, "side": 336, "teacher": {"name": "clip", **CLIP_L}}
    model = ModelConfig.parse(
        model_of(EVE_7B, VICUNA_7B | {"max_positions": 4096}, 672) | {"objectives": [{"name": "next_token"}, layer]}
    )
    found = tensors_of(model)
    wanted = shapes.eve(EVE_7B, VICUNA_7B, CLIP_L)
    once = {name: shape for name, shape in wanted.items() if not name.startswith(TWIN) and "inv_freq" not in name}
    assert found == once and len(once) == 1159 - 391 - 32
    made = Eve().of(model).maps["objectives"].made_of
    for place, tapped in enumerate((32, 28, 24, 20, 16, 12, 8, 4, 0)):
        names, _ = made(f"patch_aligning.taps.{tapped}.weight") or ((), None)
        assert names == (f"{COMPRESSOR}norm_layer.{place}.1.weight",)
    assert PUBLISHED.items() <= Eve().config(model).items()
    Eve().compare(model, PUBLISHED | OF_TRAINING, "config.json")


def test_every_name_is_accounted_for(tmp_path: Path, shapes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """All 1,159 of the release: left out are buffers, the teacher's second name, and its layers that are not read."""
    publish_release(tmp_path, shapes, ALL_TEXT, ALL_CLIP)
    write_recipe(tmp_path, aligned(ALL_TEXT, ALL_CLIP))
    assert imported(tmp_path, tmp_path / "run", "--json", "--dry-run") == 0
    told = json.loads(capsys.readouterr().out)
    (source,) = told["sources"]
    assert not told["drawn"]
    assert told["parts"] == ["encoder", "connector", "decoder", "objectives"]
    assert set(source["ignored"]) == unread(held(tmp_path / "model"), 23) and len(source["ignored"]) == 391 + 32 + 18


def test_in_and_out_again(release: Path, tmp_path: Path) -> None:
    """Aligning layer and teacher, bit for bit; of the teacher's two names the first is read and written."""
    write_recipe(tmp_path, aligned())
    assert imported(release, tmp_path / "run", recipe=str(tmp_path / "recipe.yaml")) == 0
    assert verify_main([str(tmp_path / "run"), str(release / "model")]) == 0
    words = [str(tmp_path / "run"), "--format", "eve", "--out"]
    assert export_main([*words, str(tmp_path / "out"), "--with-objectives"]) == 0
    again, tensors = load_file(tmp_path / "out" / "model.safetensors"), held(release / "model")
    behind = {name for name in unread(tensors, 2) if name.startswith(TEACHER)}
    assert again.keys() == (tensors.keys() - unread(tensors, 2)) | behind
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.items() if name not in behind)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["requires_cliploss"] is True
    assert verify_main([str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert export_main([*words, str(tmp_path / "served")]) == 0
    served = load_file(tmp_path / "served" / "model.safetensors")
    assert served.keys() == {name for name in again if not name.startswith((COMPRESSOR, TEACHER))}
    assert json.loads((tmp_path / "served" / "config.json").read_text())["requires_cliploss"] is False


def test_a_format_without_room_for_them(release: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, aligned())
    assert imported(release, tmp_path / "run", recipe=str(tmp_path / "recipe.yaml")) == 0
    with pytest.raises(ConfigError, match="format llama has no room for what only training needs"):
        export_main([str(tmp_path / "run"), "--format", "llama", "--with-objectives", "--out", str(tmp_path / "out")])


def unread(names: Iterable[str], last: int) -> set[str]:
    """Buffers, the teacher's second name, its layer behind the one that is read, and the norm after that."""
    behind = (f"layers.{last}.", "post_layernorm")
    return {
        name
        for name in names
        if name.startswith(TWIN) or "inv_freq" in name or (name.startswith(TEACHER) and any(b in name for b in behind))
    }


@pytest.mark.parametrize(
    ("left", "drawn"),
    [
        ((TEACHER,), []),
        ((TEACHER, TWIN), ["objectives.teacher"]),
        ((f"{COMPRESSOR}norm", f"{COMPRESSOR}input", f"{COMPRESSOR}output"), ["objectives.patch_aligning"]),
        ((COMPRESSOR, TEACHER), ["objectives"]),
    ],
)
def test_what_training_alone_needs_may_be_absent(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], left: tuple[str, ...], drawn: list[str]
) -> None:
    """The teacher under its second name does as well."""
    write_recipe(tmp_path, aligned())
    tensors = {name: tensor for name, tensor in held(release / "model").items() if not name.startswith(left)}
    torch.save(tensors, tmp_path / "model.bin")
    assert imported(tmp_path, tmp_path / "run", "--json", "--dry-run", path="model.bin") == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == drawn


def test_the_teacher_from_a_folder_of_its_own(
    tmp_path: Path, shapes: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the first stage begins with: a language model, and CLIP as it was published."""
    write_recipe(tmp_path, aligned())
    draw = torch.Generator().manual_seed(2)
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in shapes.clip(CLIP).items()}
    (tmp_path / "clip").mkdir()
    save_file(tensors, tmp_path / "clip" / "model.safetensors")
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"architectures": ["CLIPVisionModel"]}))
    assert imported(tmp_path, tmp_path / "run", "--json", path="clip") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sources"][0]["parts"] == told["parts"] == ["objectives"]
    assert told["drawn"] == ["encoder", "connector", "decoder", "objectives.patch_aligning"]
    assert verify_main([str(tmp_path / "run"), str(tmp_path / "clip")]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"every": 8}, "every 8: format eve needs 4"),
        ({"heads": 4}, "heads 4: format eve needs 8"),
        ({"teacher": {"name": "clip", **CLIP, "class_token": "dropped"}}, "class_token dropped: .* needs in_layers"),
        ({"teacher": {"name": "siglip", **CLIP}}, "teacher.name siglip: .* needs clip"),
    ],
)
def test_other_aligning_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Eve().fits(ModelConfig.parse(aligned(**change)))
