"""Campaign: 2,000 damaged images of every format. Is each either decoded or refused with a reason, by every decoder?

`make campaign NAME=fuzz_images` takes a minute; the result is fuzz_images.md beside this file. Exits with 3 when a file
raised anything but BadImage, killed the process, or hung; or when `exact` and `fast` disagree.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from fuzzing import campaign
from PIL import Image

from megavlm.platform.demo.photos import photo
from megavlm.platform.images import BadImage, ImageDecoder, load_decoder, probe
from megavlm.platform.images.dynamic import Dynamic

TITLE = "Damaged images: decoded, or refused with which reason"
COUNT, SEED = 2000, 1
RULE = Dynamic(tile=56, min_tiles=1, max_tiles=6, thumbnail=True)


def seeds() -> dict[str, bytes]:
    """Small intact files of every format, some decoded at reduced size by `fast`."""
    small = photo("china").crop((300, 150, 420, 240))
    large = photo("coffee").resize((720, 500))
    alpha = small.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(small.size))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {form: saved(small, form) for form in ("PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF")}
    files |= {"JPEG": saved(large, "JPEG"), "progressive": saved(large, "JPEG", progressive=True)}
    files |= {"gray JPEG": saved(small.convert("L"), "JPEG"), "CMYK": saved(small.convert("CMYK"), "JPEG")}
    files |= {"turned JPEG": saved(small, "JPEG", exif=turned), "restarts": saved(small, "JPEG", restart_marker_rows=1)}
    files |= {"MPO": saved(small, "MPO", save_all=True, append_images=[small.rotate(90)])}
    files |= {"palette": saved(small.quantize(64), "PNG"), "alpha PNG": saved(alpha, "PNG")}
    files |= {"alpha WebP": saved(alpha, "WEBP", lossless=True), "deep": saved(deep(small), "PNG")}
    files |= {f"TIFF {kind}": saved(small, "TIFF", compression=kind) for kind in ("jpeg", "tiff_lzw", "tiff_deflate")}
    return files | {"animation": saved(small, "GIF", save_all=True, append_images=[small.rotate(90)])}


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    """A file by Pillow."""
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def deep(picture: Image.Image) -> Image.Image:
    """16 bits a sample."""
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def judge(data: bytes) -> str:
    """ "decoded" or BadImage's reason; raises when the decoders disagree or return what nobody could use."""
    told = {name: verdict(load_decoder(name), data) for name in ("exact", "fast")}
    if len(set(told.values())) != 1:
        raise AssertionError(f"the decoders disagree: {told}")
    try:
        probe(data)
    except BadImage as error:
        if error.reason != told["exact"]:
            raise AssertionError(f"the header is {error.reason}, the whole {told['exact']}") from error
    return told["exact"]


def verdict(decoder: ImageDecoder, data: bytes) -> str:
    """What one decoder says."""
    (found,) = decoder.tiles([data], RULE)
    if isinstance(found, BadImage):
        return found.reason
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[1:] != (56, 56, 3) or not 1 <= len(found) <= 7:
        raise AssertionError(f"{found.dtype} {found.shape} are no tiles")
    return "decoded"


if __name__ == "__main__":
    sys.exit(campaign(Path(__file__), seeds(), judge, TITLE, COUNT, SEED))
