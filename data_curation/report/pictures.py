"""Pictures of samples: from raw shards, and where those are gone or too many from what was exported."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.images import BadImage, decode
from megavlm.platform.report import Report
from megavlm.platform.shards import Sample, ShardReader

from ..source import Shard, image_bytes, image_field, read_samples
from .view import SHARDS_SEARCHED, Name, View

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 128  # px, longest side: 3 to 8 kB
QUALITY = 75  # of WebP, which takes a third less than JPEG and knows transparency
TARS_SEARCHED = 500  # of the export: their indexes are looked through for keys
# What sources raise when their files have moved, changed or cannot be reached.
GONE = (MegaVLMError, OSError, ValueError, KeyError, pa.ArrowException)


@dataclasses.dataclass
class Pictures:
    """Pictures of one run; `lost` is the first raw shard that could not be read, with the error."""

    view: View
    lost: str | None = None

    def images(self, names: Iterable[Name], side: int = THUMBNAIL) -> dict[Name, Image]:
        """Those pictures that can be had, longest side at most `side` px: the first names' shards are read first."""
        wanted: dict[str, set[str]] = {}
        for shard, key in names:
            wanted.setdefault(shard, set()).add(key)
        found = self._raw({shard: wanted[shard] for shard in list(wanted)[:SHARDS_SEARCHED]}, side)
        left = {(shard, key) for shard, keys in wanted.items() for key in keys} - found.keys()
        return found | self._exported(left, side)

    def encoded(self, names: Iterable[Name]) -> dict[Name, bytes]:
        """The same as files."""
        return {name: encoded(image) for name, image in self.images(names).items()}

    def tell(self, report: Report, wanted: int, found: int) -> None:
        """Say why pictures are missing, if some are."""
        if found < wanted and self.lost:
            gone = f"{wanted - found} of {wanted} pictures are missing"
            report.text(f"{gone}: the raw source cannot be read any more ({self.lost}).")
        elif found < wanted:
            few = f"no more than {SHARDS_SEARCHED} raw shards are read for a section, and some files hold no image"
            report.text(f"{wanted - found} of {wanted} samples are shown without their picture: {few}.")

    def _raw(self, wanted: Mapping[str, set[str]], side: int) -> dict[Name, Image]:
        found = {}
        for shard in self._shards(wanted):
            try:
                for sample in read_samples(shard, wanted[shard.name]):
                    if (image := thumbnail(sample, side)) is not None:
                        found[shard.name, sample.key] = image
                        if all((shard.name, key) in found for key in wanted[shard.name]):
                            break
            except GONE as error:
                self.lost = self.lost or f"shard {shard.name}: {getattr(error, 'what', error)}"
        return found

    def _shards(self, wanted: Mapping[str, set[str]]) -> list[Shard]:
        return [shard for shard in self.view.run.shards if shard.name in wanted]

    def _exported(self, wanted: set[Name], side: int) -> dict[Name, Image]:
        """From the exported tars: an index tells where a key lies, and the sample itself which raw one it is."""
        tars = sorted(self.view.run.folder.path("export").glob("*.tar")) if wanted else []
        if len(tars) > TARS_SEARCHED or "ingest" not in self.view.stages.root:
            return {}
        keys = {key for _, key in wanted} | {f"{shard}-{key}" for shard, key in wanted}
        found = {}
        for tar in tars:
            for sample in _samples(tar, sorted(keys)):
                source = sample.json().get("source", {})
                name = (source.get("shard"), source.get("key"))
                if name in wanted and (image := thumbnail(sample, side)) is not None:
                    found[name] = image
        return found


def _samples(tar: Path, keys: Sequence[str]) -> list[Sample]:
    """Those of an exported tar with these keys; none where tar or index is damaged."""
    try:
        path = tar.with_name(f"{tar.stem}.index.parquet")
        index = pq.read_table(path, columns=["key"], filters=[("key", "in", keys)])
        here = dict.fromkeys(index["key"].to_pylist())
        reader = ShardReader(tar) if here else None
        return [reader.read(key) for key in here] if reader else []
    except GONE:
        return []


def thumbnail(sample: Sample, side: int) -> Image | None:
    """A sample's image, longest side at most `side` px; None where it has none or that cannot be decoded."""
    from PIL import Image

    if image_field(sample.fields) is None:
        return None
    try:
        image = Image.fromarray(decode(image_bytes(sample)))
    except BadImage:
        return None
    image.thumbnail((side, side))
    return image


def encoded(image: Image) -> bytes:
    """As a WebP file."""
    buffer = io.BytesIO()
    image.save(buffer, "WebP", quality=QUALITY)
    return buffer.getvalue()
