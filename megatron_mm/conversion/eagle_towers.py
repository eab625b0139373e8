"""Eagle's vision towers: what its checkpoints call their tensors, and those of them that no feature depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from . import clip, convnext, eva02, pix2struct, sam
from .formats import Constant
from .neutral import full, norm
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from torch import Tensor

# transformers renames what is called gamma when it loads a model, so Eagle's ConvNeXt calls it weight.
LAYER_SCALE = WeightMap([Rule("stages.{n}.blocks.{n}.gamma", "stages.{n}.blocks.{n}.weight")])
CLASSES = 1024  # of ConvNeXt's head: CLIP's embedding


class Tower(NamedTuple):
    """An expert as Eagle knows it."""

    tag: str  # in config.json
    names: WeightMap
    beside: Callable[[Any], Iterator[Constant]]  # what its module has beside our parameters


def _nothing(spec: Any) -> Iterator[Constant]:
    yield from ()


def _clip(spec: Any) -> Iterator[Constant]:
    """The class token, which goes before the layers, and a norm for it alone."""
    place = "vision_model."
    yield Constant(f"{place}embeddings.class_embedding", (spec.hidden,), full(0.0, spec.hidden))
    yield from norm(f"{place}post_layernorm", spec.hidden)


def _convnext(spec: Any) -> Iterator[Constant]:
    """The classifier."""
    width = spec.dims[-1]
    yield from norm("head.norm", width)
    yield Constant("head.fc.weight", (CLASSES, width), full(0.0, CLASSES, width))
    yield Constant("head.fc.bias", (CLASSES,), full(0.0, CLASSES))


def _eva02(spec: Any) -> Iterator[Constant]:
    """Sines and cosines of the rotary positions: for windows, for the whole tile, and again in every block."""
    sides = {"rope_win": spec.window, "rope_glb": spec.grid[0]}
    for block in range(spec.layers):
        sides[f"blocks.{block}.attn.rope"] = spec.grid[0] if spec.sees_all(block) else spec.window
    for name, side in sides.items():
        for index, kind in enumerate(("freqs_sin", "freqs_cos")):
            shape = (side * side, spec.head_dim)
            yield Constant(f"{name}.{kind}", shape, partial(_rotary, spec.head_dim, spec.rope_side, side, index))


TOWERS = {
    "clip": Tower("clip-448", clip.TOWER.under(clip.PREFIX), _clip),  # so called, whatever it is fed
    "convnext": Tower("convnext-1024", LAYER_SCALE + convnext.TRUNK, _convnext),
    "sam": Tower("sam-1024", sam.TOWER, _nothing),
    "eva02": Tower("det-1024", eva02.NATIVE, _eva02),
    "pix2struct": Tower("pix2struct-1024", pix2struct.TOWER, _nothing),
}
X5 = ("clip", "convnext", "sam", "eva02", "pix2struct")


def place(index: int) -> str:
    """What the names of tower `index` begin with."""
    return f"model.vision_tower.vision_towers.{index}.vision_tower."


def towers(experts: Iterable[tuple[str, str]]) -> WeightMap:
    """The map of a mixture of these (key, name), in order."""
    every = WeightMap([])
    for index, (key, name) in enumerate(experts):
        every += TOWERS[name].names.inside(f"experts.{key}.").under(place(index))
    return every


def _rotary(width: int, trained: int, side: int, index: int) -> Tensor:
    """[side * side, width], of positions spread over 0..trained."""
    from megavlm.kernels.torchvision import load

    load()  # timm imports it
    from timm.layers import build_rotary_pos_embed

    return build_rotary_pos_embed([side, side], dim=width, in_pixels=False, ref_feat_shape=[trained, trained])[index]
