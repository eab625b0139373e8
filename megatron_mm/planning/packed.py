"""What a step works through, from the pack manifest that a run made: the real sums. Loads no torch."""

from __future__ import annotations

import dataclasses
import functools
import math

from megavlm.platform.images import ImageTiles

from ..costs import MicroBatch
from ..data.amounts import Amounts, amounts
from ..data.build import StageData
from ..data.manifest import Manifest, Pack
from .contracts import Load
from .sample import shown

LOOKED_AT = 64  # global batches at most, evenly spread: all there are to say that these differ


def load_of_manifest(spec: StageData, manifest: Manifest) -> Load:
    """The average of its global batches, and the pack with most pixels; of long manifests, of so many batches."""
    steps = sorted({k * manifest.batches // LOOKED_AT for k in range(LOOKED_AT)})
    batches = [manifest.batch(step) for step in steps]
    length = manifest.sequence_length
    beside = functools.cache(lambda image: shown(spec.model, image).context_tiles)
    sums = [amounts(packs, length, beside) for packs in batches]
    mean = _mean(sums)
    packs = [pack for batch in batches for pack in batch]
    of = [_micro_batch(spec, pack, length) for pack in packs]
    return Load(
        packs=mean.packs,
        samples=mean.samples,
        of=_average(of),
        most=of[max(range(len(packs)), key=lambda k: (_pixels(spec, packs[k]), of[k].visual))],
        tokens=mean.tokens,
        origin=f"{len(steps)} of {manifest.batches} global batches of {manifest.path}",
        amounts=mean,
    )


def _mean(sums: list[Amounts]) -> Amounts:
    """An average global batch; images cut alike are counted together."""
    names = [f.name for f in dataclasses.fields(Amounts) if f.name not in {"batch", "first_row", "cuts"}]
    mean = {name: round(sum(getattr(each, name) for each in sums) / len(sums)) for name in names}
    counts: dict[ImageTiles, int] = {}
    for image, count in (cut for each in sums for cut in each.cuts):
        counts[image] = counts.get(image, 0) + count
    cuts = tuple((image, round(count / len(sums))) for image, count in counts.items())
    return Amounts(batch=0, first_row=0, cuts=cuts, **mean)


def _micro_batch(spec: StageData, pack: Pack, length: int) -> MicroBatch:
    """One pack; its padding is a sample of its own."""
    seen = [[shown(spec.model, image) for image in entry.images] for entry in pack.entries]
    contexts = [sum(image.context for image in images) for images in seen]
    return MicroBatch(
        positions=length,
        samples=len(pack.entries),
        squares=sum(entry.tokens**2 for entry in pack.entries) + (length - pack.tokens) ** 2,
        tiles=pack.tiles,
        visual=sum(image.visual for images in seen for image in images),
        context=sum(contexts),
        pairs=sum(entry.tokens * context for entry, context in zip(pack.entries, contexts, strict=True)),
    )


def _average(of: list[MicroBatch]) -> MicroBatch:
    """All are equally long."""
    names = [f.name for f in dataclasses.fields(MicroBatch) if f.name != "positions"]
    return dataclasses.replace(of[0], **{name: sum(getattr(each, name) for each in of) / len(of) for name in names})


def _pixels(spec: StageData, pack: Pack) -> int:
    return sum(
        image.tiles * math.prod(spec.model.tiling.size(image)) for entry in pack.entries for image in entry.images
    )
