"""What shows that originals are different pictures: no two are as near as copies by their hashes and their pixels.

By their hashes: PDQ within HASH_RADIUS. By their pixels: thumbnails that correlate as 99 of 100 copies do with their
originals, or more. Without this nobody could say which pairs of a curation are right.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from .curated import HASH_RADIUS, Truth, rows

THUMBNAIL = 24  # px
BLOCK = 2000  # rows of a matrix of all pairs


def likeness(raw: Path, run: Path, truth: Truth) -> dict[str, float]:
    """How near the originals of a run are to each other."""
    hashes = {row["key"]: row["pdq"] for row in rows(run, "filter", ["key", "keep", "pdq"]) if row["keep"]}
    bits = np.unpackbits(
        np.frombuffer(b"".join(hashes[key] for key in truth["originals"]), np.uint8).reshape(-1, 32), 1
    )
    pictures: dict[str, np.ndarray] = {}
    for path in sorted(raw.glob("*.tar")):
        pictures |= thumbnails(path, truth["originals"].keys() | truth["copies"].keys())
    copies = [float(pictures[key] @ pictures[copy["of"]]) for key, copy in truth["copies"].items()]
    pixels, bound = np.stack([pictures[key] for key in truth["originals"]]), float(np.percentile(copies, 1))
    return {"originals": len(bits), "correlation of copies": bound} | closest(bits, pixels, bound)


def closest(bits: np.ndarray, pixels: np.ndarray, correlation: float) -> dict[str, float]:
    """The nearest of all pairs of hashes uint8 [n, 256] and of unit rows float32 [n, d]; how many are near in both."""
    signs, least, most, both = 2 * bits.astype(np.float32) - 1, np.inf, -np.inf, 0
    for start in range(0, len(signs), BLOCK):
        stop = start + BLOCK
        apart = (256 - signs[start:stop] @ signs[:stop].T) / 2
        alike = pixels[start:stop] @ pixels[:stop].T
        other = np.arange(alike.shape[1])[None] < start + np.arange(len(alike))[:, None]
        least, most = min(least, apart[other].min(initial=256)), max(most, alike[other].max(initial=-1))
        both += int((other & (apart <= HASH_RADIUS) & (alike >= correlation)).sum())
    return {"least bits": float(least), "greatest correlation": float(most), "pairs alike in both": both}


def thumbnails(path: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """Key -> float32 [THUMBNAIL * THUMBNAIL * 3] of length 1, each channel's mean being 0, of images in a tar."""
    found = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if key in wanted and extension not in ("txt", "json"):
                file = tar.extractfile(member)
                assert file is not None
                image = Image.open(io.BytesIO(file.read())).convert("RGB").resize((THUMBNAIL, THUMBNAIL))
                pixels = np.asarray(image, dtype=np.float32).reshape(-1, 3)
                pixels = (pixels - pixels.mean(axis=0)).ravel()
                found[key] = pixels / np.linalg.norm(pixels)
    return found
