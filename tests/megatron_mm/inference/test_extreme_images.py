"""Two images, none, 1:40 and images of one pixel: generated from as trained on; and all of it through the verbs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import varied_layouts_worker as varied

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import DataConfig, ModelConfig, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.data.manifest import Manifest
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.megatron_mm.evaluation.predictions import read_predictions
from megavlm.megatron_mm.evaluation.stage import predictions_path
from megavlm.megatron_mm.inference.generate import Ask, Batch
from megavlm.megatron_mm.inference.prompt import encode_prompt, user_message
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.tiles import VariedTiles
from megavlm.platform.runs import RunFolder

DATA = DataConfig(tokenizer="mini", template={"name": "chatml", "system": ""}, sets={})
TOKENIZER = load_tokenizer("mini")
SHOWN = {  # the images of a prompt
    "none": [],
    "1:40": [(400, 10)],
    "40:1": [(10, 400)],
    "one pixel": [(1, 1)],
    "three pixels": [(1, 3)],
    "two of unlike shapes": [(300, 20), (30, 40)],
}
TOKENS = {  # rows * (columns + 1) + 1 of each, in steps of 14 pixels
    "eve": {"1:40": 6, "40:1": 9, "one pixel": 21, "three pixels": 13, "two of unlike shapes": 6 + 17},
    "eve_v2": {"1:40": 28, "40:1": 53, "one pixel": 21, "three pixels": 29, "two of unlike shapes": 35 + 26},
}


@pytest.fixture(scope="module", params=list(varied.MODELS))
def model(request: pytest.FixtureRequest) -> Iterator[VisionLanguageModel]:
    torch.set_num_threads(1)
    backend.init_distributed(Parallel(), seed=1)
    spec = ModelConfig.parse(varied.MODELS[request.param] | {"injection": "inline", "decoder": varied.DECODER})
    built = build_model(spec, backend.build_context(Parallel()))
    backend.initialise(built, seed=3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2)  # away from uniform logits, so that an error would change the choice
    yield built.eval()
    backend.shutdown()


def prompt(model: VisionLanguageModel, shapes: list[tuple[int, int]], text: str = "What is it?") -> PackedBatch:
    images = [varied.picture(*shape, seed=k) for k, shape in enumerate(shapes)]
    return encode_prompt([user_message(text, len(images))], images, TOKENIZER, model.spec, DATA)


def logprobs(model: VisionLanguageModel, start: PackedBatch, new: list[int]) -> torch.Tensor:
    """Float [vocab], of the token after the prompt and `new`, by a forward pass without a cache."""
    tokens = torch.cat([start.tokens, torch.tensor([new], dtype=torch.int64)], 1)
    count = tokens.shape[1]
    whole = replace(
        start,
        tokens=tokens,
        loss_weights=torch.zeros(1, count),
        position_ids=torch.arange(count)[None],
        cu_seqlens=torch.tensor([0, count], dtype=torch.int32),
        labels=None,
    )
    with torch.no_grad():
        return model(whole, gather_logits=True)[0, -1].log_softmax(-1)


def test_a_batch_of_prompts_says_what_full_forward_passes_say(model: VisionLanguageModel) -> None:
    starts = [prompt(model, shapes) for shapes in SHOWN.values()]
    batch, said = Batch(model, [Ask(start, max_new_tokens=4, top=514) for start in starts]), [[] for _ in starts]
    while batch.open:
        for each in batch.step():
            wanted = logprobs(model, starts[each.row], said[each.row])
            found = torch.tensor([value for _, value in sorted(each.likely.top)])
            torch.testing.assert_close(found, wanted[: len(found)], atol=2e-5, rtol=1e-5)
            said[each.row].append(each.token)
    assert [len(tokens) for tokens in said] == [4] * len(SHOWN)


def test_a_prompt_has_its_images_tokens_and_pixels(model: VisionLanguageModel) -> None:
    wanted = TOKENS[model.spec.encoder.name]
    for kind, shapes in SHOWN.items():
        start = prompt(model, shapes)
        assert isinstance(start.tiles, VariedTiles) and len(start.tiles) == len(shapes) and start.sizes is not None
        assert len(start.visual_index) == wanted.get(kind, 0), kind
        assert start.sizes == start.tiles.sizes and len(start.tiles.each()) == len(shapes)


def test_each_picture_is_seen(model: VisionLanguageModel) -> None:
    for kind, shapes in SHOWN.items():
        for number in range(len(shapes)):
            start = prompt(model, shapes)
            before = logprobs(model, start, [])
            tile = start.tiles.each()[number]
            tile.copy_(255 - tile)
            assert (logprobs(model, start, []) - before).abs().max() > 1e-4, (kind, number)


def megavlm(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "megavlm.platform.cli", *words, "--json"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MEGAVLM_QUIET": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def ask(run: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Every prompt of SHOWN put to a run, by one `megavlm generate`."""
    questions = []
    for number, (kind, shapes) in enumerate(SHOWN.items()):
        names = [f"{number}-{k}.png" for k in range(len(shapes))]
        for name, shape in zip(names, shapes, strict=True):
            (folder / name).write_bytes(varied.picture(*shape))
        questions.append({"id": kind, "prompt": "What is it?", "images": names})
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    files = ["--batch-file", str(folder / "questions.jsonl"), "--out", str(folder / "answers.jsonl")]
    told = megavlm("generate", str(run), *files, "--max-new-tokens", "3")
    assert (told["answers"], told["failed"]) == (len(SHOWN), 0)
    answers = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    return {answer["id"]: answer for answer in answers}


def visual_tokens(run: RunFolder, batch: int) -> int:
    packs = Manifest(run.path("stages", "packed", "packs")).batch(batch)
    images = [image for pack in packs for entry in pack.entries for image in entry.images]
    return sum(image.rows * (image.columns + 1) + 1 for image in images)


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_trained_evaluated_and_generated_from_through_the_verbs(tmp_path: Path) -> None:
    """A recipe that says nothing of shapes: images of all of them, text, two images to a sample, and a broken one."""
    varied.write_sets(tmp_path)
    recipe = json.loads(varied.write_recipe(tmp_path, "eve").read_text())
    stage = recipe["stages"]["packed"] | {"evaluate": {"vqa": "vqa", "text": "text"}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe | {"stages": {"packed": stage}}))
    told = megavlm("train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"))["stages"]["packed"]
    assert told["finished"] and told["last_loss"] < told["first_loss"]
    run = RunFolder.open(tmp_path / "run")
    steps = [line for line in run.metrics() if "visual_tokens" in line]
    assert [line["visual_tokens"] for line in steps] == [visual_tokens(run, line["batch"]) for line in steps]
    assert len(steps) == 3 and all(line["tflops_per_device"] > 0 for line in steps)
    judged = read_predictions(predictions_path(run, "packed", "vqa"))
    assert [item.id for item in judged] == [*(f"v{k}" for k in range(len(varied.SHAPES))), "both"]
    assert {item.id: item.problem for item in judged if item.problem} == {f"v{varied.CUT}": "truncated"}
    answers = ask(run.root, tmp_path)
    text = answers["none"]["prompt_tokens"]
    for kind, shapes in SHOWN.items():
        assert (answers[kind]["tiles"], len(answers[kind]["tokens"])) == (len(shapes), 3), kind
        tags = len(shapes)  # one token for each image
        assert answers[kind]["prompt_tokens"] == text + TOKENS["eve"].get(kind, 0) + tags, kind
