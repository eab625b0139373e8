"""A stage that learns in a template of its own is asked in the recipe's: its gate compares like with like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.evaluation.stage import evaluate_stage
from megavlm.megatron_mm.model import build_model
from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.runs import RunFolder
from megavlm.platform.shards import ShardWriter

STAGE = """
    train: [decoder]
    steps: 1
    mixture: {weights: {held: 1}, sequence_length: 128, packs_per_batch: 1}
    optimizer: {lr: 1e-3}
"""
RECIPE = f"""
model:
  tiling: {{tile: 28}}
  encoder: {{name: internvit, image_size: 28, patch_size: 7, layers: 1, hidden: 32, heads: 2, ffn: 64}}
  connector: {{name: pixel_shuffle_mlp, hidden: 64}}
  injection: inline
  decoder: {{name: qwen2, layers: 1, hidden: 32, heads: 4, kv_heads: 2, ffn: 64, vocab: 512, max_positions: 128}}
stages:
  alike: {STAGE}
  own: {STAGE}    template: {{name: nvlm_pretrain}}
"""


def recipe(folder: Path, template: str) -> Recipe:
    path = folder / f"{template}.yaml"
    data = {"tokenizer": "mini", "template": template, "sets": {"held": str(folder / "held")}}
    path.write_text(RECIPE + yaml.safe_dump({"data": data}))
    return load_recipe(str(path))


def test_it(tmp_path: Path, ask: Callable[..., tuple[str, dict]], one_process: BuildContext) -> None:
    with ShardWriter(tmp_path / "held") as writer:
        for number in range(12):
            writer.write(*ask(f"q{number}", f"say {number} backwards", "no"))
    chat, raw = recipe(tmp_path, "chatml"), recipe(tmp_path, "nvlm_pretrain")
    model = build_model(chat.section("model"), one_process)
    backend.initialise(model, seed=1)
    run = RunFolder.create(tmp_path / "run", chat.tree, chat.origins, ["megavlm", "train"])
    told = [
        evaluate_stage(model, run, of, name, {"text": "held"})
        for of, name in ((chat, "alike"), (chat, "own"), (raw, "own"))
    ]
    assert told[0] == told[1] and len(told[0]["text"]) == 12
    assert told[2] != told[0], "the questions tell no template from another"
