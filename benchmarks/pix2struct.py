"""`python benchmarks/pix2struct.py`: Pix2Struct's preprocessing as tensor code against the NumPy image processor.

The NumPy way is the released Eagle's: tiles are brought to the CPU and transformers' processor is run inside the forward
pass, image by image. Eagle has to undo its shared normalisation before that, which is not counted here. Both ways are
timed alone, and inside a mixture of shrunk experts with random weights. The contestants take turns, so that other work
on the machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megavlm.kernels.torchvision import load
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.mixture import Mixture
from megavlm.megatron_mm.encoders.pix2struct import Pix2Struct
from megavlm.megatron_mm.encoders.pix2struct_model import Pix2StructModel
from megavlm.megatron_mm.encoders.pix2struct_patches import flattened_patches

SIDE = 1024
# Eagle's X4 at its pixels and grids, with two narrow blocks each: what is left is mostly what the pixels cost.
EXPERTS: dict[str, Any] = {
    "clip": {"name": "clip", "image_size": 336, "layers": 2, "hidden": 64, "heads": 4, "ffn": 128, "layer": -1},
    "convnext": {"name": "convnext", "depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]},
    "eva02": {"name": "eva02", "layers": 2, "hidden": 32, "heads": 4, "ffn": 64, "global_every": 3},
    "pix2struct": {"name": "pix2struct", "layers": 2, "hidden": 64, "heads": 4, "ffn": 128},
}


class NumpyWay:
    """Tiles -> patches, by way of NumPy and transformers' processor."""

    def __init__(self, spec: Pix2Struct) -> None:
        load()
        from transformers.models.pix2struct.image_processing_pil_pix2struct import Pix2StructImageProcessorPil

        self.kept = spec.grid[0] * spec.grid[1]
        self.processor = Pix2StructImageProcessorPil(max_patches=spec.max_patches)

    def __call__(self, tiles: Tensor) -> Tensor:
        """uint8 [n, 3, S, S] -> float32 [n, patches, 768]."""
        images = [tile.numpy() for tile in tiles]
        return self.processor(images, return_tensors="pt")["flattened_patches"][:, : self.kept, 2:]


class NumpyPix2Struct(Pix2StructModel):
    """The encoder with the NumPy way in."""

    numpy_way: NumpyWay

    def _embedded(self, tiles: Tensor) -> Tensor:
        rows, columns = self.spec.grid
        down = self.embeddings.row_embedder.weight[1 : rows + 1, None]
        across = self.embeddings.column_embedder.weight[None, 1 : columns + 1]
        return self.embeddings.patch_projection(self.numpy_way(tiles)) + (down + across).flatten(0, 1)


def photographs(count: int) -> Tensor:
    """uint8 [count, 3, SIDE, SIDE] with structure at several scales."""
    draw = torch.Generator().manual_seed(1)
    scales = [torch.rand(count, 3, cells, cells, generator=draw) for cells in (3, 12, 48, 192, SIDE)]
    smooth = [F.interpolate(scale, size=(SIDE, SIDE), mode="bilinear") for scale in scales]
    return (torch.stack(smooth).mean(0) * 255).to(torch.uint8)


def mixtures() -> dict[str, Any]:
    """The mixture both ways, with the same weights."""
    ours = Mixture.parse({"experts": EXPERTS}).build(BuildContext(torch.float32))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs = Mixture.parse({"experts": EXPERTS}).build(BuildContext(torch.float32))
    theirs.load_state_dict(ours.state_dict())
    expert = theirs.experts["pix2struct"]
    expert.__class__ = NumpyPix2Struct
    expert.numpy_way = NumpyWay(expert.spec)
    return {"ours": ours, "NumPy": theirs}


def rates(contestants: dict[str, Callable[[], Any]], images: int, rounds: int) -> dict[str, list[float]]:
    """Images per CPU-second of this process in each round; one more before them is not counted."""
    took: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, call in contestants.items():
            started = time.process_time()
            call()
            took[name].append(images / (time.process_time() - started))
    return {name: each[1:] for name, each in took.items()}


def main() -> None:
    """Print rates and ratios: medians, and the worst of the rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=4, help="of one batch; 4 as in the paper's throughput")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    spec, tiles = Pix2Struct(), photographs(args.images)
    numpy_way, both = NumpyWay(spec), mixtures()
    contestants: dict[str, Callable[[], Any]] = {
        "preprocessing, ours": lambda: flattened_patches(tiles, spec.patch_size, spec.grid, torch.float32),
        "preprocessing, NumPy": lambda: numpy_way(tiles),
        "mixture, ours": lambda: both["ours"](tiles),
        "mixture, NumPy": lambda: both["NumPy"](tiles),
    }
    with torch.no_grad():
        away = (contestants["preprocessing, ours"]() - contestants["preprocessing, NumPy"]()).abs().max()
        measured = rates(contestants, args.images, args.rounds)
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "timm", "numpy")))
    for name, each in measured.items():
        print(f"{name:22s} {statistics.median(each):6.2f} images per CPU-second, worst {min(each):6.2f}")
    for what in ("preprocessing", "mixture"):
        pairs = zip(measured[f"{what}, ours"], measured[f"{what}, NumPy"], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        print(f"{what}, ours over NumPy: {statistics.median(ratios):.2f} x, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"largest difference of a patch value: {away:.1e}")


if __name__ == "__main__":
    main()
