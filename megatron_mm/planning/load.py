"""What a step works through: of a pack manifest, or assumed from the stage's mixture and image rule. No torch."""

from __future__ import annotations

import math

from megavlm.platform.images import ImageTiles

from ..costs import MicroBatch
from ..data.amounts import Amounts
from ..data.build import StageData
from ..data.manifest import Manifest
from .contracts import Load
from .packed import load_of_manifest
from .sample import PHOTO, TALK, Sample, least, shown, typical

FILL = 0.93  # of a pack, where it holds a few samples with images: the packer reaches 0.87 to 0.97 on recipes here
SHAPES = (PHOTO, (1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (6, 1), (1, 6))  # of images, for the heaviest pack
SCALE = 1000  # pixels to one of these, so that no image is too small for its tiles


def load_of(
    spec: StageData,
    sample_tokens: int | None = None,
    sample_tiles: int | None = None,
    manifest: Manifest | None = None,
) -> Load:
    """A global batch of the stage: the manifest's own, or of samples as `origin` says that they are taken to be.

    sample_tokens: of each sample, visual ones in the sequence included. sample_tiles: of each sample's image, its
    thumbnail included. Raises ConfigError where the sequence has no room for such samples.
    """
    if manifest is not None:
        return load_of_manifest(spec, manifest)
    seeing = typical(spec, sample_tokens, sample_tiles)
    text = Sample(min(TALK.usual, spec.stage.mixture.sequence_length))
    share = _share_of_text(spec, seeing, text)
    packs, samples = _counts(spec, seeing, text, share)
    of = _amounts(packs, samples, round(share * samples), seeing, text, spec)
    told = sample_tokens is not None or sample_tiles is not None
    return Load(
        packs=packs,
        samples=samples,
        of=_average(spec, of, seeing),
        most=_heaviest(spec, seeing, told, samples),
        tokens=of.tokens,
        origin=_origin(spec, seeing, share, told),
        amounts=of,
    )


def _share_of_text(spec: StageData, seeing: Sample, text: Sample) -> float:
    """The part of the samples that is text alone; 0 where the recipe says none."""
    mixture = spec.stage.mixture
    if not mixture.text_share or mixture.text_share_of == "samples":
        return mixture.text_share or 0.0
    texts, others = mixture.text_share / text.tokens, (1 - mixture.text_share) / seeing.tokens
    return texts / (texts + others)


def _counts(spec: StageData, seeing: Sample, text: Sample, share: float) -> tuple[int, int]:
    """(packs, samples) of a global batch."""
    of = spec.stage.mixture.global_batch
    tokens = share * text.tokens + (1 - share) * seeing.tokens
    each = _samples_per_pack(spec, tokens, seeing, share)
    if of.unit == "packs":
        return of.size, round(of.size * each)
    samples = of.size if of.unit == "samples" else math.ceil(of.size / tokens)
    return math.ceil(samples / each), samples


def _samples_per_pack(spec: StageData, tokens: float, seeing: Sample, share: float) -> float:
    """On average: sizes differ and fill the gaps, as long as the sequence has room for so many images."""
    mixture = spec.stage.mixture
    if not mixture.pack:
        return 1.0
    shortest = least(spec, seeing.image) if seeing.image else 1
    pictured = max(mixture.sequence_length // shortest, 1)
    return max(1.0, min(FILL * mixture.sequence_length / tokens, pictured / (1 - share)))


def _amounts(packs: int, samples: int, texts: int, seeing: Sample, text: Sample, spec: StageData) -> Amounts:
    """The sums over the global batch, `texts` of whose samples have no image."""
    pictured = samples - texts
    images = pictured if seeing.image else 0
    return Amounts(
        batch=0,
        first_row=0,
        packs=packs,
        samples=samples,
        positions=packs * spec.stage.mixture.sequence_length,
        tokens=pictured * seeing.tokens + texts * text.tokens,
        squares=pictured * seeing.tokens**2 + texts * text.tokens**2,
        seeing_tokens=images * seeing.tokens,
        seeing_squares=images * seeing.tokens**2,
        tiles=images * seeing.tiles,
        context_tiles=images * seeing.context_tiles,
        pairs=images * seeing.tokens * seeing.context_tiles,
        cuts=((seeing.image, images),) if seeing.image else (),
    )


def _average(spec: StageData, of: Amounts, seeing: Sample) -> MicroBatch:
    """One of the packs; padding is a sample more, as the packer leaves it."""
    each, images = 1 / of.packs, sum(count for _, count in of.cuts)
    empty = max(of.positions - of.tokens, 0) * each
    return MicroBatch(
        positions=spec.stage.mixture.sequence_length,
        samples=of.samples * each,
        squares=of.squares * each + empty**2,
        tiles=of.tiles * each,
        visual=images * seeing.visual * each,
        context=images * seeing.context * each,
        pairs=images * seeing.tokens * seeing.context * each,
    )


def _heaviest(spec: StageData, seeing: Sample, told: bool, samples: int) -> MicroBatch:
    """The pack with most pixels: short samples with as many images as there is room for.

    Of samples whose size was told, as many as there is room for.
    """
    if told or seeing.image is None:
        return _full(spec, seeing, seeing.tokens, samples)
    images = {spec.model.tiling.plan(SCALE * width, SCALE * height) for width, height in SHAPES}
    packs = [(image, _full(spec, shown(spec.model, image), least(spec, image), samples)) for image in images]
    return max(packs, key=lambda each: (_pixels(spec, *each), each[1].visual))[1]


def _pixels(spec: StageData, image: ImageTiles, of: MicroBatch) -> float:
    return of.tiles * math.prod(spec.model.tiling.size(image))


def _full(spec: StageData, sample: Sample, tokens: int, samples: int) -> MicroBatch:
    """A pack of as many samples as there is room for, of `tokens` each at least; a batch has no more than `samples`."""
    room = spec.stage.mixture.sequence_length
    count = min(max(room // tokens, 1), samples) if spec.stage.mixture.pack else 1
    return MicroBatch(
        positions=room,
        samples=count,
        squares=room**2 / count,
        tiles=count * sample.tiles,
        visual=count * sample.visual,
        context=count * sample.context,
        pairs=room * sample.context,
    )


def _origin(spec: StageData, seeing: Sample, share: float, told: bool) -> str:
    """In words."""
    image = f"an image of {seeing.tiles} tile{'s' * (seeing.tiles != 1)}" if seeing.image else "no image"
    words = [f"{'as told' if told else 'assumed'}: every sample has {image} and {seeing.tokens} tokens"]
    if seeing.image:
        words.append(f"{seeing.visual} of them visual")
    if seeing.context:
        words.append(f"{seeing.context} more beside the sequence")
    if share:
        words.append(f"but {share:.0%} are text alone, of {TALK.usual} tokens")
    elif spec.stage.mixture.text_sets:
        words.append("text-only ones too: the recipe says no share")
    return ", ".join(words)
