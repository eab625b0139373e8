"""EVE's patch aligning layer and the CLIP that teaches it, as published: training alone needs them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from megavlm.platform.errors import ConfigError

from . import clip
from .demands import OWN
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig

POINT = "patch_aligning"
PLACE = "model.vision_tower_compressor."
TOWER = f"backbone.{clip.PREFIX}"
# The teacher is one module in two places of the published class, so that its files have each tensor twice.
TEACHERS = (f"model.vision_clip.{TOWER}", f"{PLACE}clip_layer.{TOWER}")
EVERY, HEADS = 4, 8  # the published class has no key for them
BACKBONE = "openai/clip-vit-large-patch14-336"
SELECTED = -2  # the teacher's hidden state


class Held(NamedTuple):
    """What of it published files have: the layer itself, and where the teacher is read."""

    layer: bool = True
    teacher: str | None = TEACHERS[0]

    @classmethod
    def of(cls, names: Collection[str]) -> Held:
        """What is among these tensors."""
        layer = any(name.startswith(f"{PLACE}norm_layer.") for name in names)
        return cls(layer, next((each for each in TEACHERS if any(n.startswith(each) for n in names)), None))


def aligner(model: ModelConfig) -> Any:
    """The Config of the model's aligning objective; None where it has none."""
    return next((each for each in model.objectives if each.name == POINT), None)


def aligning(model: ModelConfig, held: Held) -> WeightMap:
    """The map of the objectives' weights for `model`. Published norms are numbered from the last layer down."""
    ignored = {f"{place}{{any}}": f"the teacher once more, read from {held.teacher}" for place in TEACHERS}
    if held.teacher in TEACHERS:
        del ignored[f"{held.teacher}{{any}}"]
    if aligner(model) is None:
        why = "the model aligns no patches"
        return WeightMap([], ignored | {f"{place}{{any}}": why for place in (PLACE, *TEACHERS[:1])})
    layer = _layer(model.decoder.layers) if held.layer else WeightMap([], drawn=[f"{POINT}.{{any}}"])
    if held.teacher is None:
        return layer + WeightMap([], drawn=["teacher.{any}"])
    return layer + clip.TOWER.under(held.teacher).inside("teacher.") + WeightMap([], ignored)


def _layer(layers: int) -> WeightMap:
    rules = []
    for place, tapped in enumerate(range(layers, -1, -EVERY)):
        norm, tap = f"{PLACE}norm_layer.{place}.0", f"{PLACE}norm_layer.{place}.1"
        rules += [Rule(f"{POINT}.norms.{tapped}.{kind}", f"{norm}.{kind}") for kind in ("weight", "bias")]
        rules.append(Rule(f"{POINT}.taps.{tapped}.weight", f"{tap}.weight"))
    for name in ("input", "output"):
        rules += [Rule(f"{POINT}.{name}.{kind}", f"{PLACE}{name}_layer.{kind}") for kind in ("weight", "bias")]
    return WeightMap(rules)


def require_published(model: ModelConfig) -> None:
    """Raise ConfigError for an aligning objective that the published class cannot be told of."""
    of = aligner(model)
    if of is None:
        return
    for key, found, wanted in _wanted(of, model):
        if found != wanted:
            raise ConfigError(
                f"{POINT}.{key} {found}: format eve needs {wanted}, since its class has no key for another",
                where="model.objectives",
                fix=OWN,
            )


def _wanted(of: Any, model: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """Keys of the objective, what they are, and what the published class takes for granted."""
    yield "every", of.every, EVERY
    yield "heads", of.heads, HEADS
    yield "teacher.name", of.teacher.name, "clip"
    yield "teacher.class_token", of.teacher.class_token, "in_layers"
    yield "teacher.trained_size", of.teacher.trained_size or of.side, of.side
    steps = model.tiling.tile // model.tiling.side_step
    yield "side", of.side, steps * of.teacher.patch_size  # a step of the tiling is a patch of the teacher
