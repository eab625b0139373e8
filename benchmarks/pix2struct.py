"""`python benchmarks/pix2struct.py`: Pix2Struct's preprocessing as tensor code against the NumPy image processor.

The NumPy way is the released Eagle's: in the forward pass it undoes the normalisation that the experts share, brings
the tiles to the CPU and runs transformers' processor on one after another. Ours takes the tiles' bytes. Timed alone,
and inside a mixture of shrunk experts with random weights. The contestants take turns, so that other work on the
machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megavlm.kernels.torchvision import load
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.encoders.expert import CLIP_MEAN, CLIP_STD
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
        return self.of_images([tile.numpy() for tile in tiles])

    def as_released(self, pixels: Tensor) -> Tensor:
        """From a tensor with CLIP's mean and std, which the other experts see too: making it is not measured."""
        mean, std = (torch.tensor(each)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
        return self.of_images([image.numpy() for image in (pixels * std + mean) * 255])

    def of_images(self, images: list[np.ndarray]) -> Tensor:
        """[3, S, S] each -> float32 [n, patches, 768]."""
        return self.processor(images, return_tensors="pt")["flattened_patches"][:, : self.kept, 2:]


class NumpyPix2Struct(Pix2StructModel):
    """The encoder with the NumPy way in."""

    numpy_way: NumpyWay
    normalised: Tensor  # the tiles, as Eagle's experts share them

    def _embedded(self, tiles: Tensor) -> Tensor:
        rows, columns = self.spec.grid
        down = self.embeddings.row_embedder.weight[1 : rows + 1, None]
        across = self.embeddings.column_embedder.weight[None, 1 : columns + 1]
        return self.embeddings.patch_projection(self.numpy_way.as_released(self.normalised)) + (down + across).flatten(
            0, 1
        )


def photographs(count: int) -> Tensor:
    """uint8 [count, 3, SIDE, SIDE] with structure at several scales."""
    draw = torch.Generator().manual_seed(1)
    scales = [torch.rand(count, 3, cells, cells, generator=draw) for cells in (3, 12, 48, 192, SIDE)]
    smooth = [F.interpolate(scale, size=(SIDE, SIDE), mode="bilinear") for scale in scales]
    return (torch.stack(smooth).mean(0) * 255).to(torch.uint8)


def mixtures(normalised: Tensor) -> dict[str, Any]:
    """The mixture both ways, with the same weights."""
    ours = Mixture.parse({"experts": EXPERTS}).build(BuildContext(torch.float32))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs = Mixture.parse({"experts": EXPERTS}).build(BuildContext(torch.float32))
    theirs.load_state_dict(ours.state_dict())
    expert = theirs.experts["pix2struct"]
    expert.__class__ = NumpyPix2Struct
    expert.numpy_way, expert.normalised = NumpyWay(expert.spec), normalised
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
    mean, std = (torch.tensor(each)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    normalised = (tiles.float() / 255 - mean) / std
    numpy_way, both = NumpyWay(spec), mixtures(normalised)
    contestants: dict[str, Callable[[], Any]] = {
        "preprocessing, ours": lambda: flattened_patches(tiles, spec.patch_size, spec.grid, torch.float32),
        "preprocessing, NumPy of bytes": lambda: numpy_way(tiles),
        "preprocessing, NumPy as released": lambda: numpy_way.as_released(normalised),
        "mixture, ours": lambda: both["ours"](tiles),
        "mixture, NumPy as released": lambda: both["NumPy"](tiles),
    }
    with torch.no_grad():
        away = (contestants["preprocessing, ours"]() - contestants["preprocessing, NumPy as released"]()).abs().max()
        measured = rates(contestants, args.images, args.rounds)
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "timm", "numpy")))
    for name, each in measured.items():
        print(f"{name:34s} {statistics.median(each):6.2f} images per CPU-second, worst {min(each):6.2f}")
    for name in (name for name in measured if "NumPy" in name):
        ours = measured[f"{name.split(',')[0]}, ours"]
        ratios = [one / other for one, other in zip(ours, measured[name], strict=True)]
        print(f"ours over {name}: {statistics.median(ratios):.2f} x, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"largest difference of a patch value: {away:.1e}")


if __name__ == "__main__":
    main()
