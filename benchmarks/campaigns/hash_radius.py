"""Campaign: which radius tells copies from other pictures when 18,400 of them are compared with one another?

`make campaign NAME=hash_radius` takes four minutes; the result is hash_radius.md beside this file. It chooses what
curation_20k and the tests at size judge, on pictures of other seeds. The radius is the one with the least error, all
seeds together: the share of copies that it misses, of the kind that it misses most, plus the share of different
pictures among what it would remove, when 2 % of the pictures are copies of each kind. Of equal ones the least; PDQ
hashes differ in an even number of bits.
Exits with 3 when that is not the radius that the recipes have.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pdqhash
from at_size.crawl import SHARE
from at_size.curated import HASH_RADIUS, LEAST_QUALITY
from at_size.pictures import Pictures
from at_size.plants import COPIES
from PIL import Image

# Seed -> how many pictures, with sides as in the campaign and as in the test; neither uses these seeds.
SETS = {501: (18_400, (100, 400)), 502: (18_400, (100, 400)), 503: (4_000, (128, 240))}
EVERY = 16  # one picture in so many is copied, in each way
RADII, SHOWN = range(20, 100, 2), (20, 30, 40, 46, 50, 54, 58, 62, 66, 70, 80)
BLOCK = 2000
RESULT = Path(__file__).with_suffix(".md")
PACKAGES = ("pdqhash", "numpy", "pillow", "scikit-image", "scikit-learn")
Hash = tuple[np.ndarray, int]  # bits 0 or 1 [256], quality 0..100


def pdq(image: Image.Image) -> Hash:
    """Of an RGB image."""
    bits, quality = pdqhash.compute(np.asarray(image))
    return np.asarray(bits, dtype=np.uint8), int(quality)


def measure(seed: int, count: int, sides: tuple[int, int]) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """Pairs of different pictures by distance, int64 [257]; distances by kind of copy; share of low quality."""
    pictures, hashes, copies = Pictures(seed, sides), list[Hash](), {kind: list[int]() for kind in COPIES}
    for number in range(count):
        _, image = pictures.original(number)
        hashes.append(pdq(image))
        if number % EVERY == number // EVERY % EVERY:  # of every kind of picture alike
            for kind, copy in COPIES.items():
                _, data = copy(image, np.random.default_rng([seed, number]))
                bits, quality = pdq(Image.open(io.BytesIO(data)).convert("RGB"))
                usable = min(quality, hashes[-1][1]) >= LEAST_QUALITY
                copies[kind].append(int((bits != hashes[-1][0]).sum()) if usable else 256)
        if number % 1000 == 0:
            print(f"seed {seed}: {number} of {count}", file=sys.stderr, flush=True)
    usable_bits = np.stack([bits for bits, quality in hashes if quality >= LEAST_QUALITY])
    return histogram(usable_bits), {k: np.array(v) for k, v in copies.items()}, 1 - len(usable_bits) / count


def histogram(bits: np.ndarray) -> np.ndarray:
    """How many pairs of rows of uint8 [n, 256] differ in 0..256 bits."""
    signs, counts = 2 * bits.astype(np.float32) - 1, np.zeros(257, np.int64)
    for start in range(0, len(signs), BLOCK):
        block = signs[start : start + BLOCK]
        products = (256 - block @ signs[: start + BLOCK].T) / 2
        earlier = np.arange(products.shape[1])[None] < start + np.arange(len(block))[:, None]
        counts += np.bincount(np.rint(products[earlier]).astype(int), minlength=257)
    return counts


def error(radius: int, told: list[tuple[np.ndarray, dict[str, np.ndarray], float]]) -> float:
    """Copies missed of the worst kind, and different pictures among those removed, as shares added up."""
    missed = max(np.mean(np.concatenate([copies[kind] for _, copies, _ in told]) > radius) for kind in COPIES)
    wrong = sum(int(pairs[: radius + 1].sum()) for pairs, _, _ in told)
    planted = SHARE * len(COPIES) * sum(count for count, _ in SETS.values())
    return float(missed + wrong / (wrong + planted))


def section(seed: int, pairs: np.ndarray, copies: dict[str, np.ndarray], low: float) -> list[str]:
    """One seed's table."""
    count, sides = SETS[seed]
    lines = [
        f"Seed {seed}: {count:,} pictures of {sides[0]} to {sides[1]} px, {100 * low:.2f} % of them of a quality below",
        f"{LEAST_QUALITY} and left out; {len(next(iter(copies.values()))):,} copies of each kind.",
        "",
        f"| radius | {' | '.join(f'recall {kind}' for kind in copies)} | pairs of different pictures |",
        "|---" * (len(copies) + 2) + "|",
    ]
    for radius in SHOWN:
        shares = " | ".join(f"{(found <= radius).mean():.4f}" for found in copies.values())
        lines.append(f"| {radius} | {shares} | {pairs[: radius + 1].sum():,} |")
    return [*lines, ""]


def main() -> int:
    """Measure, write the tables, compare with the recipes."""
    started = time.monotonic()
    told = {seed: measure(seed, *SETS[seed]) for seed in SETS}
    errors = {radius: error(radius, list(told.values())) for radius in RADII}
    radius = min(errors, key=lambda one: errors[one])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# The perceptual hash's radius at 20,000 pictures",
        "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=hash_radius`",
        f"- seeds: {', '.join(map(str, SETS))}",
        f"- machine: {os.cpu_count()} cores, no GPU",
        f"- versions: {', '.join(f'{name} {version(name)}' for name in PACKAGES)}",
        f"- wall time: {time.monotonic() - started:.0f} s",
        f"- the least error, {errors[radius]:.4f}, is at a radius of {radius} (the recipes have {HASH_RADIUS}); it is",
        f"  {', '.join(f'{errors[one]:.4f} at {one}' for one in range(radius - 8, radius + 10, 4) if one != radius)}",
        "",
        *(line for seed, found in told.items() for line in section(seed, *found)),
        "PDQ's authors' 31 loses copies that were made half as large, of text above all. These pictures have sides of",
        "some hundred pixels; larger ones need no radius as wide. What this cannot show is another crawl's pictures:",
        "among millions some different ones are nearer to each other than among thousands.",
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0 if radius == HASH_RADIUS else 3


if __name__ == "__main__":
    sys.exit(main())
