"""Drift on every layout of two ranks against one process, and that against logits put together by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import load, run_on_ranks

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.inference.passing import forward
from megavlm.megatron_mm.inference.score import text_pack
from megavlm.megatron_mm.model import VisionLanguageModel

WORKER = Path(__file__).parent / "drift_worker.py"
LAYOUTS = ["tp2", "tp2 sequence parallel", "pp2", "pp2 interleaved", "cp2", "dp2"]

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("drift")
    run_on_ranks(WORKER, 2, found)
    return found


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def truth() -> Iterator[dict[str, Any]]:
    """One process, text by text, with whole log-softmaxes in float64: rows of the baseline and of the other model."""
    torch.set_num_threads(1)
    worker = load(WORKER)
    texts = worker.texts()

    def rows(model: VisionLanguageModel) -> torch.Tensor:
        found = []
        for first, last in pairwise(texts.offsets.tolist()):
            logits = forward(model.eval(), text_pack([texts.tokens[first:last].tolist()], model))
            assert logits is not None
            counted = torch.from_numpy(texts.target[first + 1 : last])
            found.append(logits[0, :-1, :97].double().log_softmax(-1)[counted])
        return torch.cat(found)

    model = worker.build(Parallel(), seed=5)
    before = rows(model)
    now = rows(worker.draw(model, seed=6))
    yield {"before": before, "now": now, "top": worker.TOP}
    backend.shutdown()


def bound(before: torch.Tensor, now: torch.Tensor, top: int) -> float:
    """The definition, place by place: sums over the baseline's likeliest tokens, and one bucket for the others."""
    total = 0.0
    for p, q in zip(before.exp().numpy(), now.exp().numpy(), strict=True):
        named = np.argsort(-p)[:top]
        pairs = [(p[k], q[k]) for k in named] + [(p.sum() - p[named].sum(), q.sum() - q[named].sum())]
        total += sum(a * np.log(a / b) for a, b in pairs)
    return total / len(before)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_measures_what_the_definition_says(
    layout: str, results: dict[str, Any], truth: dict[str, Any], folder: Path
) -> None:
    same, other = results[layout]
    wanted = bound(truth["before"], truth["now"], truth["top"])
    whole = float((truth["before"].exp() * (truth["before"] - truth["now"])).sum(-1).mean())
    assert abs(same) < 1e-9 and other == pytest.approx(wanted, abs=1e-5)
    assert 0.05 < wanted < whole  # a lower bound
    kept = np.load(folder / f"{layout}.npz")
    values, ids = truth["before"].topk(truth["top"])
    assert (kept["ids"] == ids.numpy()).all()
    assert np.abs(kept["logprobs"][:, :-1] - values.numpy()).max() < 1e-5
    others = np.log1p(-values.exp().sum(-1).numpy())
    assert np.abs(kept["logprobs"][:, -1] - others).max() < 1e-4


def test_a_look_changes_nothing_where_weights_are_gathered_while_the_model_computes(results: dict[str, Any]) -> None:
    assert results["looked at"] == results["plain"] and len(results["plain"]) == 4
