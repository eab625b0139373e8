"""Campaign: 100 evaluation images as the web alters them. How far is each from its original, and how near are others?

`make campaign NAME=evaluation_leaks` takes a minute; the result is evaluation_leaks.md beside this file. The images are
crops of scikit-image's and scikit-learn's photographs, none overlapping another. Exits with 3 when a recompressed or
resized copy is missed at the stage's default radius, or a clean image is taken for a leak.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from megavlm.data_curation.evaluation_images import Known
from megavlm.data_curation.hashing import perceptual_hash
from megavlm.data_curation.stages.decontaminate import Decontaminate
from megavlm.platform.demo.photos import PHOTOS, photo
from megavlm.platform.images import decode

SIDE, LEAKS = 128, 100
FIELDS = Decontaminate.model_fields
RADIUS, QUALITY = FIELDS["radius"].default, FIELDS["min_hash_quality"].default
Alteration = Callable[[Image.Image], bytes]


def saved(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    """A file by Pillow."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Resized by a factor."""
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


# The first ones have to be found; the others are told so that nobody counts on them.
MUST: dict[str, Alteration] = {
    "JPEG of quality 75": lambda image: saved(image, quality=75),
    "JPEG of quality 30": lambda image: saved(image, quality=30),
    "half the size": lambda image: saved(scaled(image, 0.5), quality=85),
    "twice the size, quality 60": lambda image: saved(scaled(image, 2.0), quality=60),
    "WebP": lambda image: saved(image, "WEBP", quality=60),
}
MAY: dict[str, Alteration] = {
    "5 % cut off each side": lambda image: saved(image.crop((6, 6, SIDE - 6, SIDE - 6)), quality=85),
    "mirrored": lambda image: saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=85),
}


def crops() -> list[Image.Image]:
    """All crops of SIDE x SIDE pixels that the photographs hold side by side, in a drawn order."""
    found = []
    for name in PHOTOS:
        image = photo(name)
        for top in range(0, image.height - SIDE + 1, SIDE):
            found += [image.crop((x, top, x + SIDE, top + SIDE)) for x in range(0, image.width - SIDE + 1, SIDE)]
    return [found[place] for place in np.random.default_rng(1).permutation(len(found))]


def hashed(files: list[bytes]) -> tuple[list[bytes], np.ndarray]:
    """PDQ of each file, and its quality int [n]."""
    told = [perceptual_hash(decode(data)) for data in files]
    return [pdq for pdq, _ in told], np.array([quality for _, quality in told])


def measured(known: Known, files: list[bytes], own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bits to the nearest evaluation image, int [n], and whether the stage would drop each (for the right one)."""
    hashes, _ = hashed(files)
    near = known.nearest(hashes)
    bits = np.array([near[place][1] for place in range(len(files))])
    right = (
        np.array([near[place][0] == str(place) for place in range(len(files))]) if own else np.ones(len(files), bool)
    )
    return bits, (bits <= RADIUS) & right


def main() -> int:
    """Measure, write the page, and say whether the bounds hold."""
    whole = crops()
    hashes, quality = hashed([saved(image, quality=95) for image in whole])
    told = [place for place in range(len(whole)) if quality[place] >= QUALITY]
    leaks = told[:LEAKS]
    clean = sorted(set(range(len(whole))) - set(leaks))
    table = np.frombuffer(b"".join(hashes[place] for place in leaks), np.uint8).reshape(len(leaks), 32)
    known = Known({}, [str(place) for place in range(len(leaks))], table)
    lines, missed = [], 0
    for name, alter in (MUST | MAY).items():
        bits, dropped = measured(known, [alter(whole[place]) for place in leaks], own=True)
        missed += int((~dropped).sum()) if name in MUST else 0
        lines.append(f"| {name} | {dropped.sum()} of {len(leaks)} | {np.median(bits):.0f} | {bits.max()} |")
    bits, dropped = measured(known, [saved(whole[place], quality=95) for place in clean], own=False)
    page = _page(lines, len(whole) - len(told), clean=f"{dropped.sum()} of {len(clean)}", least=int(bits.min()))
    Path(__file__).with_suffix(".md").write_text(page)
    print(page)
    return 3 if missed or dropped.any() else 0


def _page(lines: list[str], flat: int, clean: str, least: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    head = [
        "# Altered evaluation images, by PDQ",
        "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=evaluation_leaks`",
        "- seed: 1",
        f"- versions: pdqhash {version('pdqhash')}, pillow {version('pillow')}",
        f"- images: crops of {SIDE} x {SIDE}; {flat} of a quality under {QUALITY} count as clean ones only",
        f"- radius: {RADIUS} bits",
        "",
        "| alteration | found | median bits | most bits |",
        "|---|---|---|---|",
    ]
    return "\n".join(
        [*head, *lines, "", f"Clean images taken for leaks: {clean}; the nearest is {least} bits away.", ""]
    )


if __name__ == "__main__":
    sys.exit(main())
