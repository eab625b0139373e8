"""Decoding and tiling: images per CPU-second and likeness to Pillow, for every image decoder that runs here.

    OMP_NUM_THREADS=1 python benchmarks/decode.py

takes a minute and writes decode.md beside this file. Every file is given to all decoders in turn, so that whatever else
the machine does falls on all of them. The reference is Pillow alone.
"""

from __future__ import annotations

import io
import os
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from megavlm.platform.demo.photos import PHOTOS, jpeg, photo
from megavlm.platform.errors import MissingPackage
from megavlm.platform.images import ImageDecoder, decode, decode_tiles, load_decoder
from megavlm.platform.images.dynamic import Dynamic
from megavlm.platform.images.nvidia import NvidiaDecoder

RULE = Dynamic(tile=448, min_tiles=1, max_tiles=6, thumbnail=True)
EQUAL = float("inf")
RUNS, SEED, QUALITY = 3, 1, 90
GRAY = ("brick", "camera", "coins", "grass", "gravel", "moon")
RESULT = Path(__file__).with_suffix(".md")
PACKAGES = ("pillow", "simplejpeg", "opencv-python-headless", "nvidia-nvimgcodec-cu13", "nvidia-dali-cuda130")
WORDS = """# Decoding and tiling

{facts}

Tiles of {rule.tile} px, {rule.min_tiles} to {rule.max_tiles} of them and a thumbnail; JPEG, quality {quality}, 4:2:0.
The photographs of scikit-image and scikit-learn: as they are, enlarged (Lanczos), and as mosaics of several, which are
as dense in detail as pictures of a camera. CPU time of all threads over a set, in {runs} runs: the median rate, and the
lowest ratio to Pillow in the same run. PSNR in dB, over all tiles of a file, against `exact`.

"""

Tiler = Callable[[bytes], np.ndarray]


def mosaic(width: int, height: int, seed: int) -> Image.Image:
    """Photographs side by side at their own size, every other one mirrored."""
    names = np.random.default_rng(seed).permutation(list(PHOTOS))
    out, x, y, row = Image.new("RGB", (width, height)), 0, 0, height
    for place in range(10_000):
        if y >= height:
            break
        picture = photo(str(names[place % len(names)]))
        out.paste(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if place % 2 else picture, (x, y))
        x, row = x + picture.width, min(row, picture.height)
        if x >= width:
            x, y, row = 0, y + row, height
    return out


def enlarged(width: int, height: int, names: list[str]) -> list[bytes]:
    """Some photographs at another size."""
    pictures = (photo(name).resize((width, height), Image.Resampling.LANCZOS) for name in names)
    return [jpeg(picture, QUALITY) for picture in pictures]


def mosaics(width: int, height: int, count: int) -> list[bytes]:
    """Different mosaics of one size."""
    return [jpeg(mosaic(width, height, SEED + k), QUALITY) for k in range(count)]


def gray(name: str) -> Image.Image:
    """One of scikit-image's gray photographs."""
    data = resources.files("skimage").joinpath(f"data/{name}.png").read_bytes()
    return Image.open(io.BytesIO(data)).convert("L")


def files() -> dict[str, list[bytes]]:
    """Sets of JPEG files."""
    names = list(PHOTOS)
    return {
        "photographs as they are": [jpeg(photo(name), QUALITY) for name in names],
        "gray ones as they are": [jpeg(gray(name), QUALITY) for name in GRAY],
        "enlarged to 1280x960": enlarged(1280, 960, names),
        "mosaics 1280x960": mosaics(1280, 960, 6),
        "mosaics 2048x1536": mosaics(2048, 1536, 4),
        "enlarged to 4000x3000": enlarged(4000, 3000, ["china", "coffee", "hubble"]),
        "mosaics 4000x3000": mosaics(4000, 3000, 3),
        "mosaics 3997x2999": mosaics(3997, 2999, 2),
    }


def by_pillow(data: bytes) -> np.ndarray:
    """The reference: Pillow from the bytes to the tiles."""
    return RULE.cut(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def tilers() -> dict[str, Tiler]:
    """Every way to tiles that is installed here, the reference first."""
    decoders = {
        "exact": load_decoder("exact"),
        "fast": load_decoder("fast"),
        "nvidia, cpu": NvidiaDecoder(device="cpu"),
    }
    out: dict[str, Tiler] = {"Pillow": by_pillow}
    for name, decoder in decoders.items():
        try:
            cut(decoder, jpeg(photo("china"), QUALITY))
        except MissingPackage:
            continue
        out[name] = partial(cut, decoder)
    return out


def cut(decoder: ImageDecoder, data: bytes) -> np.ndarray:
    """One file's tiles."""
    return decode_tiles(data, RULE, decoder=decoder)


def cpu_seconds(ways: dict[str, Tiler], items: list[bytes]) -> dict[str, list[float]]:
    """CPU time of all threads for all items, one number per run, for every way."""
    taken = {name: [0.0] * RUNS for name in ways}
    for run in range(RUNS):
        for data in items:
            for name, work in ways.items():
                started = time.process_time()
                work(data)
                taken[name][run] += time.process_time() - started
    return taken


def rates(taken: dict[str, list[float]], files: int) -> dict[str, str]:
    """Cells of the tables: images per CPU-second (median run), ratio to Pillow (worst run)."""
    reference = taken["Pillow"]
    return {
        name: f"{files / statistics.median(runs):.1f} | {min(r / s for r, s in zip(reference, runs, strict=True)):.2f}"
        for name, runs in taken.items()
    }


def psnr(found: np.ndarray, exact: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal arrays."""
    error = np.mean((found.astype(np.float32) - exact) ** 2, dtype=np.float64)
    return EQUAL if error == 0 else float(10 * np.log10(255**2 / error))


def tile_rows(sets: dict[str, list[bytes]]) -> Iterator[str]:
    """The table of tiles, one line per set and decoder."""
    ways, every = tilers(), defaultdict[str, list[float]](list)
    for label, items in sets.items():
        for name, rate in rates(cpu_seconds(ways, items), len(items)).items():
            likeness = [psnr(ways[name](data), decode_tiles(data, RULE)) for data in items]
            every[name] += likeness
            yield f"| {label} | {name} | {rate} | {_spread(likeness)} |"
    for name, likeness in every.items():
        yield f"| all {len(likeness)} | {name} | | | {_spread(likeness)} |"


def _spread(likeness: list[float]) -> str:
    return " | ".join("equal" if dB == EQUAL else f"{dB:.1f}" for dB in (statistics.median(likeness), min(likeness)))


def decode_rows(sets: dict[str, list[bytes]]) -> Iterator[str]:
    """The table of decoding alone."""
    ways: dict[str, Tiler] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        "exact": decode,
        "fast, min_side=672": lambda data: decode(data, min_side=672, decoder="fast"),
    }
    for label, items in sets.items():
        for name, rate in rates(cpu_seconds(ways, items), len(items)).items():
            yield f"| {label} | {name} | {rate} |"


def facts() -> str:
    """What the figures belong to."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        f"Command: `OMP_NUM_THREADS=1 python benchmarks/decode.py`; {datetime.now(UTC):%Y-%m-%d}, commit {commit};",
        f"{_cpu()}, {os.cpu_count()} cores, no GPU; {', '.join(filter(None, map(_version, PACKAGES)))}; seed {SEED}.",
        f"libjpeg-turbo inside simplejpeg {simplejpeg.__version__}.",
    ]
    return "\n".join(lines)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def main() -> None:
    """Measure everything and write the tables."""
    sets = files()
    out = [WORDS.format(facts=facts(), rule=RULE, quality=QUALITY, runs=RUNS) + "## Decode and tile", ""]
    out += [
        "| files | decoder | images per CPU-second | ratio to Pillow, at least | PSNR median | PSNR least |",
        "|---" * 6 + "|",
    ]
    out += _told(tile_rows(sets))
    out += [
        "",
        "## Decode only",
        "",
        "| files | decoder | images per CPU-second | ratio to Pillow, at least |",
        "|---" * 4 + "|",
    ]
    out += _told(decode_rows(sets))
    RESULT.write_text("\n".join(out) + "\n")


def _told(rows: Iterator[str]) -> list[str]:
    out = []
    for row in rows:
        print(row, flush=True)
        out.append(row)
    return out


if __name__ == "__main__":
    main()
