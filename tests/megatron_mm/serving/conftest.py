"""A tiny stage with random weights, served by `megavlm serve` in a process of its own, and the same model here."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.inference.generate import generate
from megavlm.megatron_mm.inference.prompt import encode_prompt
from megavlm.megatron_mm.inference.sampling import Sampling
from megavlm.megatron_mm.model import VisionLanguageModel

TOKEN = "a-token-of-the-tests-5f1c29e0b7"
NAME = "run/sft"
LIMITS = ["--max-body-bytes", "300000", "--max-image-pixels", "40000", "--max-new-tokens", "200"]
LIMITS += ["--max-batch", "6", "--max-waiting", "20"]
RECIPE = {
    "seed": 1,
    "model": {
        "tiling": {"tile": 28, "max_tiles": 4},
        "encoder": {
            "name": "internvit", "image_size": 28, "patch_size": 7, "layers": 1, "hidden": 32, "heads": 2, "ffn": 64,
        },
        "connector": {"name": "pixel_shuffle_mlp", "hidden": 64},
        "injection": {"name": "inline"},
        "decoder": {
            "name": "qwen2", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 513,
            "max_positions": 2048,
        },
    },
    "data": {"tokenizer": "mini", "template": {"name": "chatml", "system": "Be brief."}, "sets": {}},
    "stages": {
        "sft": {
            "train": ["decoder"],
            "mixture": {"weights": {"text": 1}, "sequence_length": 128, "packs_per_batch": 2},
            "steps": 4,
            "precision": "fp32",
            "optimizer": {"lr": 0.01, "min_lr": 0.001, "warmup_steps": 2},
        },
    },
}  # fmt: skip


def picture(seed: int, width: int = 70, height: int = 40) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def asked(text: str, *images: bytes, **options: Any) -> dict[str, Any]:
    """A chat request's body, greedy unless `options` say otherwise."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    content = [*parts, {"type": "text", "text": text}] if images else text
    body = {"model": NAME, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 12}
    return body | options


@dataclasses.dataclass(frozen=True)
class Served:
    """A server that runs, and what it printed on stderr so far."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        """With the token, unless `options` give other headers."""
        headers = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
        sent = {"json": body} if not isinstance(body, bytes) else {"content": body}
        return httpx2.post(f"{self.url}{path}", headers=headers, timeout=60, **sent, **options)


@pytest.fixture(scope="session")
def stage_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint of stage sft, whose random weights are far from uniform logits."""
    from megatron.core import dist_checkpointing

    from megavlm.megatron_mm import backend
    from megavlm.megatron_mm.checkpoints.forked import as_result
    from megavlm.megatron_mm.config import Parallel
    from megavlm.megatron_mm.model import build_model
    from megavlm.platform.config import load_recipe
    from megavlm.platform.runs import RunFolder

    folder = tmp_path_factory.mktemp("served")
    (folder / "tiny.yaml").write_text(json.dumps(RECIPE))
    recipe = load_recipe(str(folder / "tiny.yaml"))
    run = RunFolder.create(folder / "run", recipe.tree, recipe.origins, ["train"], may_change=["*"])
    checkpoint = run.path("checkpoints", "sft", "step-000001")
    checkpoint.mkdir(parents=True)
    as_result()
    backend.init_distributed(Parallel(), 1)
    model = build_model(recipe.section("model"), backend.build_context(Parallel()))
    backend.initialise(model, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    dist_checkpointing.save(model.sharded_state_dict(), str(checkpoint))
    backend.shutdown()
    (checkpoint / "COMPLETE").touch()
    return run.root


def start(run: Path, folder: Path, *words: str) -> Served:
    """`megavlm serve` on a free port, once it is ready."""
    command = [
        sys.executable,
        "-m",
        "megavlm.platform.cli",
        "serve",
        str(run),
        "--port",
        "0",
        "--json",
        *LIMITS,
        *words,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MEGAVLM_SERVE_TOKEN": TOKEN}
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, text=True, env=environment)
    line = process.stdout.readline()
    assert line, log.read_text()[-3000:]
    return Served(json.loads(line)["url"], process, log)


@pytest.fixture
def start_server(stage_run: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """`start_server("--tp", "2", ...)`: one of the test's own."""
    started: list[Served] = []

    def make(*words: str) -> Served:
        started.append(start(stage_run, tmp_path, *words))
        return started[-1]

    yield make
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture(scope="session")
def server(stage_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The one that tests share."""
    served = start(stage_run, tmp_path_factory.mktemp("server"))
    yield served
    served.process.kill()
    served.process.communicate()


@dataclasses.dataclass(frozen=True)
class Here:
    """The model in this process."""

    model: VisionLanguageModel
    spec: StageData

    def answer(self, text: str, *images: bytes, sampling: Sampling = Sampling(), tokens: int = 12) -> str:  # noqa: B008
        tokenizer = self.spec.tokenizer()
        message = {"role": "user", "content": "<image>" * len(images) + text}
        prompt = encode_prompt([message], images, tokenizer, self.spec.model, self.spec.data)
        stop = {tokenizer.id_of("<|im_end|>")}
        said = list(generate(self.model, prompt, stop=stop, max_new_tokens=tokens, sampling=sampling))
        return tokenizer.decode([token for token in said if token not in stop])

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """Float64 [n, vocab] by a plain forward pass."""
        from megavlm.megatron_mm.inference.score import text_pack

        with torch.no_grad():
            logits = self.model(text_pack([ids], self.model), gather_logits=True)
        return logits[0, :, : self.spec.model.decoder.vocab].double().log_softmax(-1)


@pytest.fixture(scope="module")
def here(stage_run: Path) -> Iterator[Here]:
    """The served checkpoint, loaded in this process."""
    from megavlm.megatron_mm import backend
    from megavlm.megatron_mm.checkpoints.listing import resolve
    from megavlm.megatron_mm.config import Parallel
    from megavlm.megatron_mm.inference.load import load_stage

    source = resolve(str(stage_run))
    spec = StageData.of(source.recipe, "sft")
    yield Here(load_stage(source.run, source.recipe, "sft", Parallel(), source.checkpoint), spec)
    backend.shutdown()


@pytest.fixture(scope="session")
def tools() -> Any:
    """The functions above, for test files (there are no packages of tests)."""
    from types import SimpleNamespace

    return SimpleNamespace(picture=picture, data_url=data_url, asked=asked, TOKEN=TOKEN, NAME=NAME)
