"""What a training step costs beside its forward-backward and optimizer step: CPU time against a bare loop.

`OMP_NUM_THREADS=1 python benchmarks/step_overhead.py` takes some minutes and writes step_overhead.md beside this file.
One process trains a stage as `megavlm train` does: loader with its threads, exchange between ranks, metrics, heartbeat,
events. Between its steps the same packs go through the same model and optimizer in a bare megatron-core loop: the packs
at hand, forward-backward, gradients finished, optimizer step. Pairs of both alternate. CPU time counts all threads;
what the loader's do during a bare step is ours. Every image is decoded before the first pair and then comes from the
loader's cache: how much decoding a step needs is a matter of the data, so it is told apart, per image.
Exits with 3 when the upper end of the interval is above the bound.
"""

from __future__ import annotations

import datetime
import io
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from PIL import Image

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.contracts import PackedBatch, StepBatch
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.data.samples import image_fields
from megavlm.megatron_mm.training.loop import Session, StageTrainer
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.platform.config import load_recipe
from megavlm.platform.images import decode_tiles
from megavlm.platform.runs import RunFolder
from megavlm.platform.shards import ShardWriter

PAIRS, EACH, WARM, BOUND = 10, 8, 6, 0.03  # pairs, steps of either kind in a pair, steps before the first, the bound
T_9 = 2.262  # Student's t at 97.5 % with PAIRS - 1 degrees of freedom
SAMPLES, SEED = 60, 3
RESULT = Path(__file__).with_suffix(".md")

RECIPE = """\
seed: 1
model:
  tiling: {{tile: 56, max_tiles: 4}}
  encoder: {{name: internvit, image_size: 56, patch_size: 7, layers: 4, hidden: 192, heads: 4, ffn: 768}}
  connector: {{name: pixel_shuffle_mlp, hidden: 512}}
  injection: {{name: inline}}
  decoder: {{name: qwen2, layers: 4, hidden: 256, heads: 8, kv_heads: 2, ffn: 768, vocab: 512}}
data:
  tokenizer: mini
  sets: {{some: {folder}}}
stages:
  sft:
    train: [encoder, connector, decoder]
    mixture: {{weights: {{some: 1}}, sequence_length: 1024, packs_per_batch: 2}}
    steps: {steps}
    precision: fp32
    optimizer: {{lr: 1e-4}}
    checkpoint: {{every: 100000}}
"""


def make_data(folder: Path) -> None:
    """Questions of many lengths, two of three with a JPEG that is read, decoded and cut like any other."""
    random = np.random.default_rng(SEED)
    with ShardWriter(folder) as writer:
        for k in range(SAMPLES):
            words = " ".join(str(number) for number in random.integers(0, 1000, random.integers(5, 60)))
            turns = [{"role": "user", "content": words}, {"role": "assistant", "content": words[::-1]}]
            fields: dict[str, object] = {}
            if k % 3:
                height, width = random.integers(200, 800, 2).tolist()
                out = io.BytesIO()
                Image.fromarray(picture(height, width, random)).save(out, "jpeg", quality=85)
                turns[0]["content"] = "<image>" + turns[0]["content"]
                fields["jpg"] = out.getvalue()
            writer.write(f"s{k}", {**fields, "json": {"messages": turns}})


def picture(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Slopes with a little noise: about as many bytes to a pixel as a photograph. uint8 [height, width, 3]."""
    rows, columns = np.linspace(0, 6, height)[:, None, None], np.linspace(0, 6, width)[None, :, None]
    waves = np.sin(rows * random.random(3) * 3) + np.cos(columns * random.random(3) * 3)
    return (128 + 50 * waves + random.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)


def decode_seconds(trainer: StageTrainer) -> float:
    """CPU-seconds to read, decode and cut one image, the mean over the set's."""
    (reader,), tiling = trainer.manifest.open_sets(trainer.spec.folders()).values(), trainer.spec.model.tiling
    numbers = [k for k in range(SAMPLES) if image_fields(reader.fields(k))]
    start = time.process_time()
    for k in numbers:
        (name,) = image_fields(reader.fields(k))
        data = reader.read(k, only={name}).fields[name]
        decode_tiles(data, tiling)
    return (time.process_time() - start) / len(numbers)


def open_trainer(folder: Path, wants_save: Pairs) -> StageTrainer:
    """The stage, as a worker opens it."""
    make_data(folder / "set")
    path = folder / "bench.yaml"
    path.write_text(RECIPE.format(folder=folder / "set", steps=WARM + PAIRS * EACH))
    recipe = load_recipe(str(path))
    run = RunFolder.create(folder / "run", recipe.tree, recipe.origins, [])
    ensure_packs(run, StageData.of(recipe, "sft"))
    backend.start_processes()
    attempt = run.new_attempt()
    return StageTrainer(Session(run, attempt, recipe, Pulse(attempt, 0, 1), wants_save), "sft")


class Bare:
    """The least that trains this model on packs at hand."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.wrapped, self.optimizer = trainer.wrapped, trainer.optimizer

    def step(self, batch: StepBatch) -> None:
        """Forward, backward, update."""
        weight = sum(float(pack.loss_weights.sum()) for pack in batch.packs)

        def forward(feed: Iterator[PackedBatch], stage: torch.nn.Module) -> tuple[torch.Tensor, object]:
            pack = next(feed)
            losses = stage(pack)
            return losses, lambda out: (
                (out * pack.loss_weights).sum() / weight, torch.ones((), dtype=torch.int), None
            )  # fmt: skip

        for part in self.wrapped.trained:
            part.zero_grad_buffer()
        self.optimizer.zero_grad()
        seen = self.wrapped.model.tower(batch.tiles).values if len(batch.tiles) else None
        given = None if seen is None else seen.detach().requires_grad_()
        packs = batch.packs if given is None else with_visual(batch, given)
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(packs),
            model=self.wrapped.stages,
            num_microbatches=len(packs),
            seq_length=packs[0].length,
            micro_batch_size=1,
            forward_only=False,
        )
        if seen is not None and given is not None:
            seen.backward(given.grad)
        self.wrapped.tower.finish_grad_sync()
        finalize_model_grads(self.wrapped.stages, None)
        self.optimizer.step()


def with_visual(batch: StepBatch, values: torch.Tensor) -> list[PackedBatch]:
    """The packs with their own visual tokens, as one process has them all."""
    (counts,) = batch.shares.counts
    each = len(values) // max(sum(counts), 1)
    parts = values.split([each * count for count in counts])
    return [replace(pack, visual=visual) for pack, visual in zip(batch.packs, parts, strict=True)]


class Pairs:
    """Asked once a step whether to save; uses the occasion to take the time, and to do the bare step in between."""

    def __init__(self) -> None:
        self.trainer: StageTrainer | None = None
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.beside: list[float] = []  # of ours, what the loader's threads took
        self._since = _now()

    def __call__(self) -> bool:
        """Never."""
        if self.trainer and self.trainer.batch:
            done, before = _now(), self._since
            Bare(self.trainer).step(self.trainer.batch)
            now = _now()
            self.bare.append(now.step - done.step)
            self.beside.append(now.loader - before.loader)
            self.ours.append(done.step - before.step + self.beside[-1])
        self._since = _now()
        return False


class Now(NamedTuple):
    """CPU-seconds so far: of the loader's threads, and of all others (torch's collectives have some of their own)."""

    step: float
    loader: float


def _now() -> Now:
    ours = [thread for thread in threading.enumerate() if thread.name.startswith(("packs", "decode"))]
    loader = sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) for thread in ours if thread.ident)
    return Now(time.process_time() - loader, loader)


def ratios(pairs: Pairs) -> list[float]:
    """Our CPU time over the bare loop's, pair by pair."""
    ours, bare = pairs.ours[WARM:], pairs.bare[WARM:]
    starts = range(0, PAIRS * EACH, EACH)
    return [sum(ours[k : k + EACH]) / sum(bare[k : k + EACH]) for k in starts]


def main() -> int:
    """Run, print, write step_overhead.md."""
    torch.set_num_threads(1)
    pairs = Pairs()
    with tempfile.TemporaryDirectory() as folder:
        pairs.trainer = open_trainer(Path(folder), pairs)
        pairs.trainer.train()
        decoding = decode_seconds(pairs.trainer)
        backend.shutdown()
    found = [ratio - 1 for ratio in ratios(pairs)]
    mean, half = statistics.mean(found), T_9 * statistics.stdev(found) / math.sqrt(PAIRS)
    beside = sum(pairs.beside[WARM:]) / sum(pairs.bare[WARM:])
    seconds = statistics.mean(pairs.bare[WARM:])
    text = report(found, (mean, half), beside, seconds, decoding)
    print(text)
    RESULT.write_text(text)
    return 3 if mean + half > BOUND else 0


def report(found: list[float], interval: tuple[float, float], beside: float, seconds: float, decoding: float) -> str:
    """The page."""
    mean, half = interval
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    made = (
        f"{datetime.date.today()}; commit {commit}; torch {version('torch')}, megatron-core {version('megatron-core')}"
    )
    rows = "\n".join(f"| {number} | {100 * ratio:+.2f} % |" for number, ratio in enumerate(found, 1))
    low, high = (f"{100 * edge:+.2f}" for edge in (mean - half, mean + half))
    return f"""# What a step costs beside its forward-backward and optimizer step

Command: `OMP_NUM_THREADS=1 python benchmarks/step_overhead.py`; {made};
one process, one thread, CPU; seeds 1 and {SEED}.

Everything that `megavlm train` does in a step, against a bare megatron-core loop over the same packs, model and
optimizer; CPU time of all threads, {PAIRS} interleaved pairs of {EACH} steps each. A bare step is {seconds:.2f} s of
CPU.

**{100 * mean:+.2f} % (95 % interval {low} to {high} %); the bound is {100 * BOUND:.0f} %.**

Of it the loader's threads take {100 * beside:.2f} %: they work while the step runs, on another core where there is one.
Images came from the loader's cache; to read, decode and cut one of 200 to 800 pixels a side takes those threads
{1000 * decoding:.1f} ms.

| pair | ours over bare |
|---|---|
{rows}
"""


if __name__ == "__main__":
    sys.exit(main())
