"""The images that a row names: files of one folder, or bytes in the row itself."""

from __future__ import annotations

import base64
import binascii
import errno
from typing import Any

from megavlm.platform.errors import InputError
from megavlm.platform.storage import join, local_path, open_file

from ..source import IMAGE_FIELDS
from ..sources.hugging_face import image_kind
from ..text.sample import BadRow


class Images:
    """Images by reference. `folder` is where paths start (a folder or any fsspec URL), None where there are none."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    def fetch(self, image: Any) -> tuple[str, bytes]:
        """The field's extension and the untouched bytes of a path, a `data:` URL, bytes, or {"bytes", "path"}.

        Raises BadRow: missing_image, remote_image (a link: nothing is downloaded here), unsafe_name (a path that leads
        out of the folder), and image_... for what is no image.
        """
        if isinstance(image, dict):
            image = next((image[name] for name in ("bytes", "path", "url") if image.get(name)), None)
        if isinstance(image, bytes):
            ext, data = image_kind(image), image
        elif isinstance(image, str) and image:
            ext, data = _inline(image) if image.startswith("data:") else self._file(image)
        else:
            raise BadRow("missing_image", f"an image is {type(image).__name__}, neither a path nor bytes")
        _check(data)
        return ext, data

    def _file(self, name: str) -> tuple[str, bytes]:
        if name.startswith(("http://", "https://")):
            raise BadRow("remote_image", f"'{name[:200]}' is a link; img2dataset downloads such")
        if self._folder is None:
            raise BadRow("missing_image", f"'{name[:200]}', and no folder of images was given (--images)")
        try:
            path = join(self._folder, name.replace("\\", "/"))
        except InputError as error:
            raise BadRow("unsafe_name", error.what[:300]) from None
        except (OSError, ValueError) as error:  # a name that no file can have
            raise BadRow("missing_image", str(error)[:300]) from None
        data = _read(path, name)
        ending = name.rsplit(".", 1)[-1].lower()
        return (ending if ending in IMAGE_FIELDS else image_kind(data)), data


def _read(path: str, name: str) -> bytes:
    here = local_path(path)
    try:
        if here is not None and not here.is_file():  # a pipe would be waited for
            raise InputError("no such file")
        with open_file(path) as file:
            return bytes(file.read())
    except (InputError, IsADirectoryError, NotADirectoryError) as error:
        raise BadRow("missing_image", f"no image file '{name[:200]}': {error}"[:300]) from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # the row's fault, not the disk's
            raise BadRow("missing_image", str(error)[:300]) from None
        raise


def _inline(url: str) -> tuple[str, bytes]:
    head, _, body = url.partition(",")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow("missing_image", f"a data: URL that does not decode: {error}"[:300]) from None
    if not head.endswith(";base64"):
        raise BadRow("missing_image", "a data: URL that is not base64")
    return image_kind(data), data


def _check(data: bytes) -> None:
    """From the header alone, as when packs are built."""
    from megavlm.platform.images.decode import probe

    try:
        probe(data)
    except InputError as error:
        raise BadRow(f"image_{getattr(error, 'reason', 'unreadable')}", error.what[:300]) from None
