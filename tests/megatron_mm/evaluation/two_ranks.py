"""What the ranks of test_predict.py run: a small model is taught a few answers, then judged under every layout.

Writes results.json into the folder given: layout -> {"predictions", "blind", and "generated" for three layouts}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.forked import as_result
from megavlm.megatron_mm.config import DataConfig, ModelConfig, Parallel
from megavlm.megatron_mm.data.measure import template
from megavlm.megatron_mm.data.samples import read_conversation
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.megatron_mm.evaluation.items import read_items
from megavlm.megatron_mm.evaluation.predict import Packer, evaluate_suite
from megavlm.megatron_mm.inference.generate import generate
from megavlm.megatron_mm.inference.prompt import encode_prompt, user_message
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.shards import ShardReader

MODEL = ModelConfig.parse({
    "tiling": {"tile": 28, "max_tiles": 2},
    "encoder": {
        "name": "internvit", "image_size": 28, "patch_size": 7, "layers": 1, "hidden": 32, "heads": 2, "ffn": 64,
    },
    "connector": {"name": "pixel_shuffle_mlp", "hidden": 64},
    "injection": {"name": "inline", "tags": "1d"},
    "decoder": {
        "name": "qwen2", "layers": 4, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 513,
        "max_positions": 128,
    },
})  # fmt: skip
DATA = DataConfig(tokenizer="mini", template={"name": "chatml", "system": ""}, sets={})
TOKENIZER = load_tokenizer("mini")
LENGTH = 128
LAYOUTS = {
    "dp2": Parallel(),
    "tp2": Parallel(tp=2),
    "tp2_sp": Parallel(tp=2, sequence_parallel=True),
    "pp2": Parallel(pp=2),
    "pp2_vp2": Parallel(pp=2, vp=2),
    "cp2": Parallel(cp=2),
}


def build(parallel: Parallel) -> VisionLanguageModel:
    backend.init_distributed(parallel, seed=1)
    model = build_model(MODEL, backend.build_context(parallel))
    backend.initialise(model, seed=1)
    return model


def teach(model: VisionLanguageModel, reader: ShardReader, steps: int) -> None:
    """The same on every rank, without reductions: a plain copy of the model on each."""
    items, _ = read_items(reader, MODEL.tiling)
    packer = Packer(reader, template(MODEL, TOKENIZER, DATA.template), MODEL, TOKENIZER, LENGTH)
    packs = [packer.pack(group) for group in packer.plan(items)[0]]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        for pack in packs:
            weights = pack.batch.loss_weights
            losses = model(dataclasses.replace(pack.batch, labels=pack.labels[None]))
            ((losses * weights).sum() / weights.sum()).backward()
        optimizer.step()


def say(model: VisionLanguageModel, reader: ShardReader, limit: int = 8) -> dict[str, list[int]]:
    """Item id -> the tokens that generation gives; items that cannot be shown are left out."""
    said: dict[str, list[int]] = {}
    for item in read_items(reader, MODEL.tiling)[0]:
        images = read_conversation(reader.read(item.index)).images
        with contextlib.suppress(InputError):
            prompt = encode_prompt(item.messages[:-1], images, TOKENIZER, MODEL, DATA)
            said[item.id] = list(generate(model, prompt, stop={TOKENIZER.id_of("<|im_end|>")}, max_new_tokens=limit))
    return said


def refused(model: VisionLanguageModel) -> str:
    """The key that generation names when it refuses this layout; "" when it does not."""
    try:
        next(generate(model, encode_prompt([user_message("?", 0)], [], TOKENIZER, MODEL, DATA), stop=()))
    except ConfigError as error:
        return error.where or ""
    return ""


def judge(model: VisionLanguageModel, reader: ShardReader, blind: bool = False) -> list[dict[str, Any]]:
    found = evaluate_suite(model, TOKENIZER, reader, MODEL, DATA, sequence_length=LENGTH, shuffle_images=blind)
    return [dataclasses.asdict(item) for item in found]


def main(lessons: str, held_out: str, work: str) -> None:
    reader, checkpoint, results = ShardReader(held_out), Path(work) / "checkpoint", {}
    for name, parallel in LAYOUTS.items():
        model = build(parallel)
        if name == "dp2":
            teach(model, ShardReader(lessons), steps=60)
            checkpoint.mkdir(exist_ok=True)
            as_result()
            dist_checkpointing.save(model.sharded_state_dict(), str(checkpoint))
        else:
            model.load_parts(dist_checkpointing.load(model.sharded_state_dict(), str(checkpoint)))
        results[name] = {"predictions": judge(model, reader), "blind": judge(model, reader, blind=True)}
        if name in ("dp2", "tp2", "pp2"):
            results[name]["generated"] = say(model, reader)
        else:
            results[name]["refused"] = refused(model)
    if dist.get_rank() == 0:
        (Path(work) / "results.json").write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":  # dist_checkpointing may start processes that import this file
    main(*sys.argv[1:])
