"""The demo's photographs: those that ship inside scikit-image and scikit-learn, cut into crops."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import MissingPackage

# name -> (package, file). motorcycle_right is left out: it is the stereo twin of motorcycle_left.
PHOTOS = {
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
}
CELL = 112  # px; crops stand in cells of this side, so no two of them overlap
SMALLEST = 96  # px; the shortest side of a crop
MOST_PER_PHOTO = 48  # the large scans would otherwise outweigh the photographs


def photo(name: str) -> Image.Image:
    """One of PHOTOS as RGB; raises MissingPackage when its package is not installed."""
    package, file = PHOTOS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(
            f"the demo's photograph '{name}' ships in {package}", fix="pip install scikit-image scikit-learn"
        )
    return Image.open(Path(spec.submodule_search_locations[0]) / file).convert("RGB")


def crops(rng: np.random.Generator) -> list[tuple[str, Image.Image]]:
    """Disjoint crops of every photograph as (caption, image), in a fixed order for a given generator."""
    return [crop for name in PHOTOS for crop in _crops_of(name, photo(name), rng)]


def _crops_of(name: str, image: Image.Image, rng: np.random.Generator) -> list[tuple[str, Image.Image]]:
    cells = [(r, c) for r in range(image.height // CELL) for c in range(image.width // CELL)]
    order = rng.permutation(len(cells))
    out = []
    for row, column in (cells[i] for i in order):
        width, height = (int(side) for side in rng.integers(SMALLEST, CELL + 1, size=2))
        left = column * CELL + int(rng.integers(0, CELL - width + 1))
        top = row * CELL + int(rng.integers(0, CELL - height + 1))
        crop = image.crop((left, top, left + width, top + height))
        if _has_content(crop):
            out.append((f"{name}, detail from row {row + 1}, column {column + 1}", crop))
    return out[:MOST_PER_PHOTO]


def _has_content(crop: Image.Image) -> bool:
    """False for the black surround of a scan or empty sky: nobody could tell two such crops apart."""
    gray = np.asarray(crop.convert("L"), dtype=np.float32)
    return float(gray.std()) > 10.0


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """`image` as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """`image` as PNG bytes, compressed fast."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
