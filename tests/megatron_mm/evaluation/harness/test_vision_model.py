"""A real model, small and untaught, asked about several images through lmms-eval."""

from __future__ import annotations

import yaml

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.evaluation.benchmarks.protocols import find_protocol
from megavlm.megatron_mm.evaluation.benchmarks.table import find_benchmark
from megavlm.megatron_mm.evaluation.engines.base import Ask
from megavlm.megatron_mm.evaluation.engines.megatron import MegatronEngine
from megavlm.megatron_mm.evaluation.harness.vision import evaluate_vision
from megavlm.megatron_mm.model import build_model
from megavlm.platform.config import load_recipe

MODEL = {
    "tiling": {"tile": 28, "max_tiles": 2},
    "encoder": {
        "name": "internvit", "image_size": 28, "patch_size": 7, "layers": 1, "hidden": 32, "heads": 2, "ffn": 64,
    },
    "connector": {"name": "pixel_shuffle_mlp", "hidden": 64},
    "injection": {"name": "inline", "tags": "1d"},
    "decoder": {
        "name": "qwen2", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 513,
        "max_positions": 400,
    },
}  # fmt: skip
STAGE = {
    "train": ["decoder"],
    "mixture": {"weights": {"text": 1}, "sequence_length": 128, "packs_per_batch": 1},
    "steps": 1,
}
STAGE |= {"precision": "fp32", "optimizer": {"lr": 0.01, "min_lr": 0.001}}


def test_a_real_model_is_shown_several_images(tmp_path, one_process, parquet, shot):
    rows = [
        {"id": f"validation_Math_{n}", "question": "Is <image 1> left of <image 2>?", "options": "['yes', 'no']"}
        | {"question_type": "multiple-choice", "answer": "A", "image_1": shot(one), "image_2": shot(other)}
        for n, (one, other) in enumerate([("a", "b"), ("b", "a"), ("a", "a")])
    ]
    folder = tmp_path / "lmms-lab-encoder" / "MMMU"
    parquet(folder, "data/validation-00000-of-00001.parquet", rows, images=("image_1", "image_2"))
    data = {"tokenizer": "mini", "template": {"name": "chatml", "system": ""}, "sets": {}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"seed": 1, "model": MODEL, "data": data, "stages": {"sft": STAGE}}))
    spec = StageData.of(load_recipe(str(recipe)), "sft")
    model = build_model(spec.model, one_process)
    backend.initialise(model, seed=1)
    engine = MegatronEngine(model, spec, batch=3)
    short = find_protocol("nvlm")
    asked = short.benchmarks["mmmu"].model_copy(update={"max_new_tokens": 6})
    short = short.model_copy(update={"benchmarks": short.benchmarks | {"mmmu": asked}})
    found = evaluate_vision(engine, find_benchmark("mmmu"), tmp_path, short)
    text = "<image>\n<image>\nIs <image 1> left of <image 2>?\nA. yes\nB. no\n\n"
    text += "Answer with the option's letter from the given choices directly."
    turns = ({"role": "system", "content": "Answer the questions."}, {"role": "user", "content": text})
    wanted = [Ask(turns, (shot(a)["bytes"], shot(b)["bytes"]), max_new_tokens=6) for a, b in ("ab", "ba", "aa")]
    assert [item.answer for item in found] == engine.generate(wanted)
    assert not any(item.problem for item in found) and any(item.answer for item in found)
