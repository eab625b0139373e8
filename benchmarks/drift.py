"""The drift meter on the mini: what a look costs beside a step, and how tight its bound is.

`OMP_NUM_THREADS=1 python benchmarks/drift.py` takes some minutes and writes drift.md beside this file. nvlm-d-mini's
language model is trained, then two stages go on from it in one process, one with its text and one with pictures alone.
At every look the whole divergence is put together from all logits, which a mini's vocabulary allows. Costs are CPU
time. Both stages are shorter than the recipe's: what is compared are figures of the same weights.
"""

from __future__ import annotations

import datetime
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.training.loop import Session, StageTrainer
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.megatron_mm.training.watchers.likeliest import bucketed, divergence, likeliest
from megavlm.megatron_mm.training.watchers.passes import through, untouched
from megavlm.megatron_mm.training.watchers.texts import Texts
from megavlm.megatron_mm.training.work import work
from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.runs import RunFolder

RESULT = Path(__file__).with_suffix(".md")
TOPS = (1, 5, 20, 50)
SHARES = {"text": "{vqa: 1, text: 2}", "pictures": "{vqa: 1, text: null}"}
COUNT, EVERY, STEPS, LANGUAGE, LENGTH = 200, 4, 8, 30, 512
WATCH = (
    f"[{{name: drift, every: {EVERY}, baseline: language, texts: text-heldout, count: {COUNT}}}, "
    f"{{name: gate, every: {EVERY}, baseline: language, max_drop: 0.05}}]"
)


class Row(NamedTuple):
    """One look: divergences in nats a token, CPU seconds of the drift meter, of the gate and of a step before it."""

    blend: str
    step: int
    whole: float
    bounds: dict[int, float]
    drift: float
    gate: float
    a_step: float


def recipe_of(blend: str) -> Recipe:
    """The mini on one process, its language stage and one that goes on from there."""
    one = [f"stages.{name}.parallel.tp=1" for name in ("language", "connector", "sft", "control")]
    one += [f"stages.language.steps={LANGUAGE}", f"stages.language.mixture.sequence_length={LENGTH}"]
    sft = [
        f"stages.sft.{word}"
        for word in (
            "after=[language]",
            "mixture.packs_per_batch=1",
            f"mixture.sequence_length={LENGTH}",
            f"steps={STEPS}",
            f"watch={WATCH}",
        )
    ]
    mixture = f"stages.sft.mixture.weights={SHARES[blend]}"
    return load_recipe(
        "nvlm-d-mini", [*one, *sft, mixture, *(["stages.sft.mixture.text_sets=[]"] if blend != "text" else [])]
    )


def all_logprobs(trainer: StageTrainer, texts: Texts) -> tuple[Tensor, Tensor]:
    """Logits float32 and log-probabilities float64 [rows, vocab] of every token that counts."""
    vocab = trainer.model.spec.decoder.vocab
    with untouched(trainer.model):
        found = through(trainer.model, texts, LENGTH, lambda logits, rows: (rows, logits[:, :vocab].float()))
    rows, logits = (torch.cat(column) for column in zip(*found, strict=True))
    logits = logits[rows.argsort()]
    return logits, logits.double().log_softmax(-1)


def watched(trainer: StageTrainer, blend: str) -> Iterator[Row]:
    """Train the stage; a row for every look."""
    found: list[Row] = []
    drift, gate = (each.look for each in trainer.watching._watched)
    texts: Texts = drift._reference.texts  # type: ignore[attr-defined]
    logits, before = all_logprobs(trainer, texts)
    named = {top: likeliest(logits, top) for top in TOPS}
    kept = {top: bucketed(logits, ids) for top, ids in named.items()}
    last, pace = time.process_time(), [0.0]

    def look(step: int) -> dict[str, float]:
        nonlocal last
        pace.append(time.process_time() - last)
        if step % EVERY == 0:
            with untouched(trainer.model):
                at = [time.process_time()]
                seen = drift(step)
                at.append(time.process_time())
                gate(step)
                at.append(time.process_time())
            now, q = all_logprobs(trainer, texts)
            bounds = {top: float(divergence(kept[top], bucketed(now, ids)).mean()) for top, ids in named.items()}
            whole = float((before.exp() * (before - q)).sum(-1).mean())
            assert abs(bounds[20] - seen.figures["kl"]) < 1e-5
            costs = (at[1] - at[0], at[2] - at[1], statistics.median(pace[2:]))
            found.append(Row(blend, step, whole, bounds, *costs))
        last = time.process_time()
        return {}

    trainer.watching.look = look  # type: ignore[method-assign]
    assert trainer.train()
    yield from found


def measured(folder: Path) -> Iterator[Row]:
    """The language stage once, then both blends from it."""
    for blend in SHARES:
        recipe = recipe_of(blend)
        run = RunFolder.create(folder / "run", recipe.tree, recipe.origins, ["train"], may_change=["*"])
        attempt = run.new_attempt()
        if not run.path("stages", "language", "finished").exists():
            ensure_packs(run, StageData.of(recipe, "language"))
            work(run, attempt, ["language"], Pulse(attempt, 0, 1), lambda: False)
        for name in ("stages", "checkpoints"):
            if run.path(name, "sft").exists():
                run.path(name, "sft").rename(run.path(name, "sft-before"))
        ensure_packs(run, StageData.of(recipe, "sft"))
        backend.start_processes()
        yield from watched(
            StageTrainer(Session(run, attempt, recipe, Pulse(attempt, 0, 1), lambda: False), "sft"), blend
        )
        backend.shutdown()


def written(rows: list[Row]) -> str:
    """The page."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    step, drift, gate = (statistics.median(getattr(row, key) for row in rows) for key in ("a_step", "drift", "gate"))
    tight = [row.bounds[20] / row.whole for row in rows]
    table = [cells(row) for row in rows]
    heads = ["trained on", "step", "whole KL", *(f"top {top}" for top in TOPS)]
    lines = [f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *table]]
    return f"""# The drift meter on the mini

Command: `OMP_NUM_THREADS=1 python benchmarks/drift.py`; {datetime.date.today()}; commit {commit};
torch {version("torch")}, megatron-core {version("megatron-core")}; one process, one thread, CPU; seed 1; nvlm-d-mini,
{LANGUAGE} steps of language, {STEPS} of a stage behind it, packs of {LENGTH} tokens; {COUNT} held-out texts.

**A look of the drift meter is {drift:.2f} s of CPU, one of the gate {gate:.2f} s, a step of one pack {step:.2f} s**
(medians). So every 100 steps the meter adds {drift / step / 100:.1%} and the gate {gate / step / 100:.1%}.

**By the 20 likeliest tokens and one bucket it is {min(tight):.1%} to {max(tight):.1%} of the whole divergence.**
All in nats a token of the answers, KL(language || now):

{chr(10).join(lines)}
"""


def cells(row: Row) -> list[str]:
    """A look as a line of the table."""
    bounds = [f"{row.bounds[top]:.4f}" for top in TOPS]
    return [row.blend, str(row.step), f"{row.whole:.4f}", *bounds]


def main() -> int:
    """Measure and write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows: list[Any] = list(measured(Path(folder)))
    RESULT.write_text(written(rows))
    print(RESULT.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
