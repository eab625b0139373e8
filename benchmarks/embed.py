"""`python benchmarks/embed.py`: what an image costs to embed on a CPU, and who runs the model in fewer CPU-seconds.

Synthetic photographs of 448 x 448 pixels; EVA02-B-16 of OpenCLIP with random weights, whose speed is that of real ones.
The contestants take turns, so that other work on the machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from megavlm.data_curation.embedders.open_clip_model import OpenClip
from megavlm.data_curation.stages.embed import decoded
from megavlm.platform.images import load_decoder

SIDE = 448


def photographs(count: int) -> list[bytes]:
    """JPEG files with structure at several scales."""
    return [_photograph(np.random.default_rng(seed)) for seed in range(count)]


def _photograph(rng: np.random.Generator) -> bytes:
    image = np.zeros((SIDE, SIDE, 3))
    for cells in (3, 6, 12, 24, 96):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image += np.asarray(noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float)
    out = io.BytesIO()
    Image.fromarray((image / 5).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Of this process, all its threads together."""
    started = time.process_time()
    call()
    return time.process_time() - started


def main() -> None:
    """Print milliseconds of CPU for each image: the worst and the median of the rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="EVA02-B-16")
    parser.add_argument("--images", type=int, default=8, help="of each round of the models; they are one batch")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    built = {runtime: OpenClip(model=args.model, runtime=runtime).build(1) for runtime in ("torch", "openvino")}
    models = {runtime: embedding for runtime, (embedding, _) in built.items()}
    notes = built["torch"][1]
    print({name: notes[name] for name in ("model", "weights", "parameters", "image_size")})
    many = photographs(max(100, args.images))
    prepare = models["torch"].prepare
    images = decoded(many, load_decoder("exact"), notes["image_size"])
    batch = np.stack([prepare(image) for image in images[: args.images]])
    contestants: dict[str, tuple[int, Callable[[], Any]]] = {
        "decode, exact": (len(many), lambda: decoded(many, load_decoder("exact"), notes["image_size"])),
        "decode, fast": (len(many), lambda: decoded(many, load_decoder("fast"), notes["image_size"])),
        "resize and normalise": (len(many), lambda: [prepare(image) for image in images]),
        **{f"model, {name}": (len(batch), lambda one=one: one.forward(batch)) for name, one in models.items()},
    }
    for _, call in contestants.values():  # loading and compiling are not measured
        call()
    took: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, (count, call) in contestants.items():
            took[name].append(1000 * cpu_seconds(call) / count)
    for name, each in took.items():
        print(f"{name:22s} {statistics.median(each):8.2f} ms of CPU an image, worst {max(each):8.2f}")
    ratios = [eager / other for eager, other in zip(took["model, torch"], took["model, openvino"], strict=True)]
    print(f"OpenVINO over eager: {statistics.median(ratios):.2f} x, {min(ratios):.2f} to {max(ratios):.2f}")
    torch_, openvino = (one.forward(batch) for one in models.values())
    print(f"largest difference: {np.abs(torch_ - openvino).max():.1e} where features are {np.abs(torch_).max():.1e}")


if __name__ == "__main__":
    main()
