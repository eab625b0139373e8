"""Images as they are sent: the file's own bytes where any server reads them alike, otherwise encoded anew."""

from __future__ import annotations

import io

from PIL import Image

from megavlm.platform.images import decode, probe

MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
EXIF_ORIENTATION = 0x0112


def picture(data: bytes, max_side: int) -> tuple[bytes, str]:
    """(bytes, MIME type) of an image whose sides are at most `max_side` pixels.

    A JPEG, PNG or WebP that is small enough, upright and RGB or gray is passed on untouched. Anything else is decoded,
    turned upright, reduced with Pillow's Lanczos filter and encoded as PNG, or as JPEG of quality 95 where it came as
    one. Raises BadImage.
    """
    info = probe(data)
    if info.format in MIME and max(info.width, info.height) <= max_side and _plain(data):
        return data, MIME[info.format]
    image = Image.fromarray(decode(data))
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    lossy = info.format in ("JPEG", "MPO", "WEBP")
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95) if lossy else image.save(out, "PNG")
    return out.getvalue(), MIME["JPEG" if lossy else "PNG"]


def _plain(data: bytes) -> bool:
    """Whether servers that mind neither EXIF nor transparency nor CMYK see what we see. `data` is known to open."""
    with Image.open(io.BytesIO(data)) as image:
        return image.mode in ("RGB", "L") and image.getexif().get(EXIF_ORIENTATION, 1) == 1
