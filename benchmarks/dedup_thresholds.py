"""Chooses the deduplication thresholds of recipes/curate-demo.yaml, on plants that the demo never sees.

    python benchmarks/dedup_thresholds.py > benchmarks/dedup_thresholds.md

Disjoint crops of scikit-image's gray photographs (the demo uses the colour ones); every third crop gets one copy of
each kind. A pair is true when both images come from one crop. Recall counts pairs of a crop and its copy; precision
counts all pairs found but those with a light crop, so it also sees pairs of two copies.

The choice: PDQ alone decides at three quarters (60) of the largest threshold without a false pair (80), so that other
photographs find a margin; up to 80 it confirms what features propose, at an epsilon that alone would be too loose.
PDQ and imagehash's phash tie; PDQ is specified independently of one library and grades itself. Its quality is not used
as a bar here: on crops this small it would cost a tenth of the copies and save no false pair.

imagehash is no dependency of the project: `pip install imagehash` for this script.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from megavlm.data_curation.embedders.pixels import Pixels
from megavlm.data_curation.embedders.timm_model import Timm
from megavlm.data_curation.features import unit
from megavlm.data_curation.hashing import perceptual_hash

PHOTOS = (
    "brick.png", "camera.png", "cell.png", "clock_motion.png", "coins.png", "grass.png", "gravel.png",
    "microaneurysms.png", "moon.png", "page.png", "text.png",
)  # fmt: skip
CELL = 112  # px; crops stand in cells of this side, so no two overlap
BOUNDED = ("recompressed", "resized", "watermarked")
EMBEDDERS: dict[str, Timm | Pixels] = {
    f"EVA-02 tiny, random weights, {size} px, {pooling}": Timm(
        model="eva02_tiny_patch14_224", image_size=size, resize="squash", pooling=pooling
    )
    for size, pooling in ((84, "grid"), (112, "grid"), (84, "model"))
} | {"Pixels squashed to 8 x 8, the baseline": Pixels(side=8)}


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """`image` as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def recompressed(image: Image.Image, rng: np.random.Generator) -> bytes:
    """JPEG quality 30 to 60."""
    return jpeg(image, int(rng.integers(30, 61)))


def resized(image: Image.Image, rng: np.random.Generator) -> bytes:
    """50 to 80 % of the size."""
    scale = rng.uniform(0.5, 0.8)
    return jpeg(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC))


def watermarked(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Half-transparent text somewhere across the image."""
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    place = (int(rng.integers(2, image.width // 3)), int(rng.integers(2, image.height - 20)))
    opacity, size = int(rng.integers(80, 141)), int(rng.integers(10, 15))
    ImageDraw.Draw(layer).text(place, "SAMPLE photo", fill=(255, 255, 255, opacity), font=ImageFont.load_default(size))
    return jpeg(Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB"))


def cropped(image: Image.Image, rng: np.random.Generator) -> bytes:
    """4 to 8 % off two sides."""
    x, y = (round(side * rng.uniform(0.04, 0.08)) for side in image.size)
    return jpeg(image.crop((x, y, image.width, image.height)))


COPIES: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "recompressed": recompressed, "resized": resized, "watermarked": watermarked, "cropped": cropped,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plants:
    """images uint8 [H, W, 3]; `crop` int [n]: which crop an image shows; `kind` of a copy, "" for the crop itself."""

    images: list[np.ndarray]
    crop: np.ndarray
    kind: np.ndarray

    @classmethod
    def make(cls, seed: int) -> Plants:
        """A set for one seed."""
        rng = np.random.default_rng(seed)
        rows: list[tuple[bytes, int, str]] = []
        for index, image in enumerate(crops(rng)):
            rows.append((jpeg(image), index, ""))
            if index % 3 == seed % 3:
                rows += [(copy(image, rng), index, kind) for kind, copy in COPIES.items()]
        images = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data, _, _ in rows]
        return cls(images, np.array([row[1] for row in rows]), np.array([row[2] for row in rows]))

    def score(self, near: np.ndarray) -> dict[str, float]:
        """Recall by kind, recall over BOUNDED, and precision, of a symmetric bool matrix [n, n]."""
        pairs = np.triu(near, 1)
        same = self.crop[:, None] == self.crop[None, :]
        # precision leaves light crops out on both sides: they are reported without a bound
        bounded = (self.kind != "cropped")[:, None] & (self.kind != "cropped")[None, :]
        found = (pairs & bounded).sum()
        out = {"precision": float((pairs & same & bounded).sum() / found) if found else 1.0}
        hits = {kind: self._found(near, kind) for kind in COPIES}
        out |= {kind: float(hit.mean()) for kind, hit in hits.items()}
        return out | {"recall": float(np.concatenate([hits[kind] for kind in BOUNDED]).mean())}

    def _found(self, near: np.ndarray, kind: str) -> np.ndarray:
        copies = np.flatnonzero(self.kind == kind)
        originals = [np.flatnonzero((self.crop == self.crop[i]) & (self.kind == ""))[0] for i in copies]
        return near[copies, originals]


def crops(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Disjoint crops with content of every photograph."""
    for name in PHOTOS:
        photo = Image.open(data_folder() / name).convert("RGB")
        for top in range(0, photo.height - CELL + 1, CELL):
            for left in range(0, photo.width - CELL + 1, CELL):
                width, height = (int(side) for side in rng.integers(96, CELL + 1, size=2))
                crop = photo.crop((left, top, left + width, top + height))
                if np.asarray(crop.convert("L"), dtype=np.float32).std() > 10.0:
                    yield crop


def data_folder() -> Path:
    """Where scikit-image keeps its photographs."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data"


def pdq(plants: Plants) -> tuple[np.ndarray, np.ndarray]:
    """Hamming distances int [n, n] of PDQ's 256 bits, and the hashes' qualities."""
    hashes, qualities = zip(*map(perceptual_hash, plants.images), strict=True)
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1), axis=1).astype(np.int32)
    return (bits[:, None] != bits[None]).sum(-1), np.array(qualities)


def speed(hash_of: Callable[[np.ndarray], object], side: int = 768) -> float:
    """Milliseconds for one hash of a side x side photograph, the best of 5."""
    photo = np.asarray(Image.open(data_folder() / "camera.png").convert("RGB").resize((side, side)))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        hash_of(photo)
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def imagehash_phash(plants: Plants) -> np.ndarray:
    """Hamming distances int [n, n] of imagehash's phash at the same 256 bits."""
    import imagehash

    bits = np.stack([imagehash.phash(Image.fromarray(image), 16).hash.ravel() for image in plants.images])
    return (bits[:, None] != bits[None]).sum(-1)


def cosine_distance(plants: Plants, embedder: Timm | Pixels) -> np.ndarray:
    """1 - cosine of centred features, [n, n]."""
    embed, _ = embedder.build(seed=1)
    blocks = [embed(plants.images[start : start + 32]) for start in range(0, len(plants.images), 32)]
    features = np.concatenate(blocks)
    rows = unit(features, features.mean(axis=0))
    return 1.0 - rows @ rows.T


def table(sets: list[Plants], distances: list[np.ndarray], thresholds: list[float]) -> str:
    """A Markdown table: one line per threshold, the lowest figure over the sets."""
    names = ("recall", "precision", *COPIES)
    lines = ["| threshold | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for threshold in thresholds:
        scores = [plants.score(d <= threshold) for plants, d in zip(sets, distances, strict=True)]
        worst = {name: min(score[name] for score in scores) for name in names}
        lines.append(f"| {threshold:g} | " + " | ".join(f"{worst[name]:.3f}" for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the report."""
    sets = [Plants.make(seed) for seed in (101, 102, 103)]
    sizes = ", ".join(f"{len(plants.images)} images of {plants.crop.max() + 1} crops" for plants in sets)
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("pdqhash", "imagehash", "timm", "torch", "scikit-image")
    )
    print("# Thresholds for deduplication\n")
    print(
        f"Command: `python {' '.join(sys.argv)}`; {datetime.date.today()}; {packages}; seeds 101, 102, 103: {sizes}.\n"
    )
    print(__doc__.split("\n\n", 2)[2].strip() + "\n\nEvery figure is the lowest of the three seeds.\n")
    measured = [pdq(plants) for plants in sets]
    bits = [distances for distances, _ in measured]
    print(f"## PDQ, differing bits of 256 ({speed(perceptual_hash):.1f} ms for 768 x 768)\n")
    print(table(sets, bits, [10, 20, 31, 40, 50, 60, 70, 80, 90]))
    print("\n## PDQ, only hashes of quality 50 or more (PDQ's own advice)\n")
    trusted = [np.where(np.minimum.outer(q, q) >= 50, d, 999) for d, q in measured]
    print(table(sets, trusted, [31, 60, 80, 90]))
    import imagehash

    took = speed(lambda image: imagehash.phash(Image.fromarray(image), 16))
    print(f"\n## imagehash.phash with 256 bits, differing bits ({took:.1f} ms for 768 x 768)\n")
    print(table(sets, [imagehash_phash(plants) for plants in sets], [10, 20, 30, 40, 50, 60, 70, 80]))
    for name, embedder in EMBEDDERS.items():
        distances = [cosine_distance(plants, embedder) for plants in sets]
        print(f"\n## {name}: epsilon (a pair at centred cosine >= 1 - epsilon)\n")
        print(table(sets, distances, [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]))
        if "grid" in name or "Pixels" in name:
            print_together(sets, bits, distances)


def print_together(sets: list[Plants], bits: list[np.ndarray], distances: list[np.ndarray]) -> None:
    """PDQ within 60 bits, or features within epsilon that PDQ confirms within some more bits."""
    for epsilon in (0.02, 0.05, 0.1):
        # below 60 bits the hash decides alone; above, only pairs that the features propose are looked at
        both = [np.where((d <= epsilon) | (b <= 60), b, 999) for b, d in zip(bits, distances, strict=True)]
        print(f"\nTogether: PDQ <= 60, or epsilon {epsilon:g} and PDQ <= threshold (`confirm_radius`)\n")
        print(table(sets, both, [60, 70, 80, 90, 100, 110]))


if __name__ == "__main__":
    main()
