"""`convert import`, `verify` and `export` on small published models, and every way in which those may not fit."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from megavlm.kernels import torchvision
from megavlm.megatron_mm.conversion.verb import export_main, import_main, verify_main
from megavlm.megatron_mm.conversion.words import size
from megavlm.platform.errors import ConfigError, InputError, MegaVLMError

TEXT = {"layers": 2, "hidden": 48, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 96, "max_positions": 64}
QWEN2 = {"name": "qwen2", **TEXT}
LLAMA = {"name": "llama", **TEXT, "rope_base": 5e5, "norm_eps": 1e-5}
SCALING = {"factor": 8.0, "original_positions": 16}
SIGHT = {"name": "internvit", "image_size": 28, "patch_size": 7, "layers": 1, "hidden": 32, "heads": 4, "ffn": 48}
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """recipe.yaml of a Qwen2, and what `published` puts beside it."""
    torch.set_num_threads(1)
    write_recipe(tmp_path, QWEN2)
    return tmp_path


@pytest.fixture
def published(stage_of: Callable[..., Any], publish_language: Callable[..., Any]) -> Callable[..., torch.nn.Module]:
    """`published(home, decoder, max_shard)`: transformers' model of it in home/model."""

    def make(home: Path, decoder: dict[str, Any] = QWEN2, max_shard: str = "40KB") -> torch.nn.Module:
        (home / "its").mkdir()
        return publish_language(
            stage_of({"decoder": decoder, "encoder": SIGHT}, home / "its").model, home / "model", max_shard
        )

    return make


def write_recipe(home: Path, decoder: dict[str, Any]) -> None:
    model = {"tiling": {"tile": 28}, "encoder": SIGHT, "decoder": decoder}
    (home / "recipe.yaml").write_text(yaml.safe_dump({"base": "nvlm-d-mini", "parameters": None, "model": model}))


def imported(home: Path, *words: str, out: str = "run") -> int:
    return import_main([str(home / "model"), "--recipe", str(home / "recipe.yaml"), "--out", str(home / out), *words])


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a model that is one file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    "decoder",
    [QWEN2, {**QWEN2, "tied": True}, {**LLAMA, "rope_scaling": SCALING}],
    ids=["qwen2", "qwen2 tied", "llama 3.1"],
)
def test_in_and_out_again(
    home: Path, published: Callable[..., Any], capsys: pytest.CaptureFixture[str], decoder: dict[str, Any]
) -> None:
    """transformers loads the export, and says what it said."""
    write_recipe(home, decoder)
    model = published(home, decoder)
    assert imported(home, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["parts"], told["drawn"], told["stage"]) == (["decoder"], ["encoder", "connector"], "language")
    assert verify_main([str(home / "run"), str(home / "model"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["equal"] and told["logits"]["equal"] and told["differences"] == []
    words = [str(home / "run"), "--format", decoder["name"], "--out", str(home / "out"), "--max-shard", "30KB"]
    assert export_main(words) == 0
    again = load(home / "out")
    assert again.config.rope_parameters == model.config.rope_parameters
    tokens = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def load(folder: Path) -> Any:
    torchvision.load()
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_verify_names_the_value_that_differs(
    home: Path, published: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    published(home, max_shard="5GB")
    imported(home)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.k_proj.weight"].view(torch.int32)[3, 5] ^= 1  # the last bit of one value
        tensors[NORM][0] = -0.0

    edit(home / "model", lambda tensors: tensors[NORM].__setitem__(0, 0.0))
    assert imported(home, out="zero") == 0
    edit(home / "model", change)
    capsys.readouterr()
    assert verify_main([str(home / "zero"), str(home / "model"), "--json"]) == 3
    found = {each["parameter"]: each for each in json.loads(capsys.readouterr().out)["differences"]}
    assert list(found) == [
        "decoder: decoder.layers.1.input_layernorm.weight",
        "decoder: decoder.layers.1.self_attention.linear_qkv.weight",
    ]
    assert [each["why"] for each in found.values()] == ["1 of 48 values differ", "1 of 4,608 values differ"]
    assert verify_main([str(home / "zero"), str(home / "model")]) == 3
    assert "k_proj" in capsys.readouterr().out


CHANGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(NORM), rf"lacks tensors that the model has: {NORM}"),
    "unexpected": (
        lambda t: t.update({"model.layers.2.w": torch.ones(1)}),
        r"that the model lacks: model\.layers\.2\.w",
    ),
    "misshapen": (lambda t: t.update({NORM: torch.ones(49)}), rf"'{NORM}' is \[49\], and the model's decoder makes it"),
    "more rows": (lambda t: t.update({"lm_head.weight": torch.ones(97, 48)}), r"'lm_head.weight' is \[97, 48\]"),
    "of two dtypes": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": torch.ones(48, 48).bfloat16()}),
        r"q_proj.weight' is of dtype bfloat16, float32",
    ),
    "quantised": (lambda t: t.update({NORM: torch.ones(48, dtype=torch.float8_e4m3fn)}), r"is of dtype F8_E4M3"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_what_does_not_fit_is_named_and_nothing_written(home: Path, published: Callable[..., Any], change: str) -> None:
    published(home, max_shard="5GB")
    how, said = CHANGES[change]
    edit(home / "model", how)
    with pytest.raises(InputError, match=said):
        imported(home)
    assert not (home / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope_theta", 1e4, "rope_theta 10000.0, and the recipe's model comes to 1000000.0"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps 1e-05"),
        ("num_key_value_heads", 4, "num_key_value_heads 4"),
        ("tie_word_embeddings", True, "tie_word_embeddings True"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "rope_scaling"),
    ],
)
def test_a_value_that_no_shape_tells(
    home: Path, published: Callable[..., Any], key: str, value: object, said: str
) -> None:
    published(home)
    config = json.loads((home / "model" / "config.json").read_text())
    del config["rope_parameters"]
    (home / "model" / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ConfigError, match=said):
        imported(home)


def test_zero_rows_for_tokens_that_were_not_published(
    home: Path, published: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    published(home)
    write_recipe(home, {**QWEN2, "vocab": 100})
    assert imported(home, "--json") == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert source["padded"] == ["model.embed_tokens.weight: 96 rows of 100", "lm_head.weight: 96 rows of 100"]
    assert verify_main([str(home / "run"), str(home / "model")]) == 0


def test_a_tied_model_leaves_the_copy_of_its_table_out(
    home: Path, published: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(home, {**QWEN2, "tied": True})
    published(home, {**QWEN2, "tied": True}, max_shard="5GB")
    edit(home / "model", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert imported(home, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sources"][0]["ignored"] == {"lm_head.weight": "the output layer is the embedding"}
    assert told["checkpoint"] is None and not (home / "run").exists()


def test_dtypes_stay_unless_asked(home: Path, published: Callable[..., Any]) -> None:
    published(home, max_shard="5GB")
    edit(home / "model", lambda t: t.update({name: x.bfloat16() for name, x in t.items()}))
    assert imported(home) == 0
    for name, kind in (("kept", torch.bfloat16), ("float32", torch.float32)):
        words = [] if name == "kept" else ["--dtype", name]
        export_main([str(home / "run"), "--format", "qwen2", "--out", str(home / name), *words])
        found, wanted = load_file(home / name / "model.safetensors"), load_file(home / "model" / "model.safetensors")
        assert all(found[key].dtype == kind and torch.equal(found[key], wanted[key].to(kind)) for key in wanted)


def test_refused_before_anything_is_written(home: Path, published: Callable[..., Any]) -> None:
    published(home)
    model, recipe = str(home / "model"), str(home / "recipe.yaml")
    refused: list[tuple[Callable[[], int], type[MegaVLMError], str]] = [
        (lambda: import_main([model, model, "--recipe", recipe, "--out", str(home / "x")]), ConfigError, "both hold"),
        (lambda: import_main([model, "--recipe", recipe, "--out", str(home)]), ConfigError, "there already"),
        (lambda: imported(home, "--format", "llama", out="x"), ConfigError, "the model's decoder is qwen2"),
        (lambda: imported(home, "--format", "qwen", out="x"), ConfigError, "unknown weight format 'qwen'"),
        (lambda: imported(home, "--part", "encoder", out="x"), ConfigError, "holds decoder, and not encoder"),
    ]
    for call, kind, said in refused:
        with pytest.raises(kind, match=said):
            call()
    (home / "model" / "config.json").write_text('{"architectures": ["OtherForCausalLM"]}')
    with pytest.raises(InputError, match="says OtherForCausalLM: no format has that architecture"):
        imported(home, out="x")
    assert not (home / "x").exists()


@pytest.mark.parametrize(
    ("text", "meant"),
    [("5GB", 5 * 10**9), ("512MiB", 2**29), ("3 kb", 3000), ("7", 7), ("5 gigs", None), ("", None)],
)
def test_sizes(text: str, meant: int | None) -> None:
    if meant is not None:
        assert size(text) == meant
    else:
        with pytest.raises(ArgumentTypeError, match="is no size"):
            size(text)


def test_an_export_appears_whole_and_only_once(home: Path, published: Callable[..., Any]) -> None:
    published(home)
    imported(home)
    words = [str(home / "run"), "--format", "qwen2", "--out", str(home / "out")]
    assert export_main([*words, "--dry-run"]) == 0 and not (home / "out").exists()
    (home / ".out.part").mkdir()
    (home / ".out.part" / "left").touch()
    assert export_main(words) == 0
    assert {path.name for path in (home / "out").iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(ConfigError, match="there already"):
        export_main(words)
