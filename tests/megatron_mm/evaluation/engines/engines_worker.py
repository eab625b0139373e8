"""What the ranks of test_engines_agree.py run: a text model is taught, saved, and asked the tasks on every layout.

Writes to the folder given: run/checkpoints/sft/step-000001, and results.json: layout -> {"samples", "predictions",
"chat", "answers"}.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import asked
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.forked import as_result
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.evaluation.benchmarks.protocols import Asked
from megavlm.megatron_mm.evaluation.engines.base import Ask
from megavlm.megatron_mm.evaluation.engines.megatron import MegatronEngine, drive
from megavlm.megatron_mm.evaluation.harness.language import evaluate_folder, run_tasks
from megavlm.megatron_mm.evaluation.harness.tasks import load_tasks
from megavlm.megatron_mm.inference.score import text_pack
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.config import load_recipe

IN_TURNS = Asked(
    system="Be brief.", before=None, after=None, shots=0, max_new_tokens=12, options={"template": True}, sources={}
)
LAYOUTS = {"dp2": Parallel(), "tp2": Parallel(tp=2), "pp2": Parallel(pp=2)}


def teach(model: VisionLanguageModel, spec: StageData, steps: int = 60) -> None:
    """The same on every rank."""
    tokenizer = spec.tokenizer()
    texts = [tokenizer.encode(text) for text in asked.lessons()]
    pack = text_pack(texts, model)
    labels = pack.tokens.roll(-1)
    weights = torch.ones_like(labels, dtype=torch.float32)
    weights[0, pack.cu_seqlens[1:].long() - 1] = 0
    pack = dataclasses.replace(pack, labels=labels, loss_weights=weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(pack) * weights).sum() / weights.sum()).backward()
        optimizer.step()


def responses(samples: dict[str, Any]) -> dict[str, Any]:
    return {name: {each["doc_id"]: each["resps"] for each in rows} for name, rows in samples.items()}


def ask_all(engine: MegatronEngine, folder: Path) -> dict[str, Any]:
    """Rank 0's part. Programs are judged where there is a sandbox."""
    with tempfile.TemporaryDirectory() as cache:
        tasks = load_tasks(folder, list(asked.TASKS), None, Path(cache))
        samples, problems = run_tasks(engine, tasks, None, None, lambda: None)
        turns = load_tasks(folder, ["local_choice", "local_sums"], None, Path(cache))
        chat, more = run_tasks(engine, turns, IN_TURNS, None, lambda: None)
    assert not problems and not more
    names = ["local_choice", "local_sums", *(["local_code"] if shutil.which("bwrap") else [])]
    found = evaluate_folder(engine, folder, names)
    question = {"role": "user", "content": "Say <|im_end|> and\nItem 4 is"}
    begun = (question, {"role": "assistant", "content": "It"})
    answers = engine.generate([Ask((question,), max_new_tokens=5), Ask(begun, max_new_tokens=5)])
    return {
        "samples": responses(samples),
        "chat": responses(chat),
        "predictions": [dataclasses.asdict(item) for item in found],
        "answers": answers,
    }


def main(work: Path) -> None:
    spec = StageData.of(load_recipe(str(work / "recipe.yaml")), "sft")
    checkpoint, results = work / "checkpoint", {}
    for name, parallel in LAYOUTS.items():
        backend.init_distributed(parallel, seed=1)
        model = build_model(spec.model, backend.build_context(parallel))
        if name == "dp2":
            backend.initialise(model, seed=1)
            teach(model, spec)
            checkpoint.mkdir(exist_ok=True)
            as_result()
            dist_checkpointing.save(model.sharded_state_dict(), str(checkpoint))
        else:
            model.load_parts(dist_checkpointing.load(model.sharded_state_dict(), str(checkpoint)))
        results[name] = drive(MegatronEngine(model, spec, batch=3), lambda engine: ask_all(engine, work / "tasks"))
    if dist.get_rank() == 0:
        (work / "results.json").write_text(json.dumps(results))
    backend.shutdown()


if __name__ == "__main__":  # dist_checkpointing may start processes that import this file
    main(Path(sys.argv[1]))
