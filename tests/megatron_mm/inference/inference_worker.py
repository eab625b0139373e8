"""What the ranks of test_layouts_agree.py run: the same asks and texts on every layout of two processes.

Writes {layout: {"said", "alone", "scores"}} to the file given; the model is drawn once, and resharded through a
checkpoint.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from PIL import Image

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.forked import as_result
from megavlm.megatron_mm.config import DataConfig, ModelConfig, Parallel
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.megatron_mm.inference.generate import Ask, Batch
from megavlm.megatron_mm.inference.prompt import encode_prompt, user_message
from megavlm.megatron_mm.inference.sampling import Sampling
from megavlm.megatron_mm.inference.score import score, text_pack
from megavlm.megatron_mm.model import VisionLanguageModel, build_model

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
LAYOUTS = {"one": Parallel(), "tp2": Parallel(tp=2), "pp2": Parallel(pp=2)}  # in the first each rank has all of it
TEXTS = [[5, 7, 11, 400, 2], [90], [3] * 20]


def asks() -> list[Ask]:
    """Prompts of three lengths, with 0, 1 and 2 images, one of them sampled."""
    found = []
    for number in range(3):
        images = []
        for seed in range(number):
            values = np.random.default_rng(seed).integers(0, 256, (30, 60 + 40 * seed, 3), dtype=np.uint8)
            images.append(io.BytesIO())
            Image.fromarray(values).save(images[-1], "PNG")
        message = user_message("What is it? " * (3 - number), number)
        prompt = encode_prompt([message], [image.getvalue() for image in images], TOKENIZER, MODEL, DATA)
        sampling = Sampling(0.8 if number == 1 else 0.0, 0.9, seed=7)
        found.append(Ask(prompt, max_new_tokens=6 + 2 * number, sampling=sampling, top=3))
    return found


def say(model: VisionLanguageModel, given: list[Ask]) -> list[list[Any]]:
    batch, said = Batch(model, given), [[] for _ in given]
    while batch.open:
        for each in batch.step():
            said[each.row].append(dataclasses.astuple(each.likely))
    return said


def main(work: Path) -> None:
    results = {}
    for name, parallel in LAYOUTS.items():
        backend.init_distributed(parallel, seed=1)
        model = build_model(MODEL, backend.build_context(parallel))
        if name == "one":
            backend.initialise(model, seed=3)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(2)  # away from uniform logits, so that an error would change the choice
            (work / "checkpoint").mkdir(exist_ok=True)
            as_result()
            dist_checkpointing.save(model.sharded_state_dict(), str(work / "checkpoint"))
        else:
            model.load_parts(dist_checkpointing.load(model.sharded_state_dict(), str(work / "checkpoint")))
        scores = [[dataclasses.astuple(e) for e in one] for one in score(model, text_pack(TEXTS, model), top=3)]
        told = {"said": say(model, asks()), "alone": [say(model, [ask])[0] for ask in asks()], "scores": scores}
        everyone: list[Any] = [None, None]
        dist.all_gather_object(everyone, told)
        results[name] = {**told, "ranks_agree": everyone[0] == everyone[1]}
    if dist.get_rank() == 0:
        (work / "results.json").write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":  # dist_checkpointing may start processes that import this file
    main(Path(sys.argv[1]))
