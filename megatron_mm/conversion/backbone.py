"""What trained weights are mixed with: a run's checkpoint or a folder of published weights. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megavlm.platform.config.tree import leaves
from megavlm.platform.errors import ConfigError

from ..checkpoints.listing import Source, names_checkpoint, resolve
from ..config import ModelConfig
from ..data.build import StageData
from .published import Published

# A vocabulary may have grown since, and how long a text may be changes no weight.
LOOSE = frozenset({"vocab", "max_positions"})
PARTS = ("decoder",)  # what is mixed where nobody says it: the rest of the model has no other end


class Blend(NamedTuple):
    """weight * trained + (1 - weight) * backbone, over the axes `parts`."""

    weight: float
    trained: Source
    backbone: Published | Source
    parts: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Where the weights are from, as plain data."""
        return {
            "weight": self.weight,
            "parts": list(self.parts),
            "trained": said(self.trained),
            "backbone": said(self.backbone),
            "formula": "weight * trained + (1 - weight) * backbone (WiSE-FT, arXiv 2109.01903)",
        }


def make_blend(weight: float, trained: Source, backbone: str, parts: Sequence[str] | None, where: str) -> Blend:
    """A blend of `parts`, of the decoder where none are given.

    Raises ConfigError for a weight outside [0, 1], told under the option `where`; InputError where there is no such
    backbone.
    """
    if not 0 <= weight <= 1:
        fix = "0 is the backbone, 1 the trained model"
        raise ConfigError(f"weight {weight:g} is not in [0, 1]", where=where, fix=fix)
    return Blend(weight, trained, find_backbone(backbone), tuple(dict.fromkeys(parts or PARTS)))


def find_trained(text: str, stage: str | None = None) -> Source:
    """RUN, RUN:STAGE, or RUN/checkpoints/STAGE/step-N; raises InputError or ConfigError where it is none of them."""
    run, colon, named = text.rpartition(":")
    if stage or not colon or Path(text).exists():
        return resolve(text, stage)
    return resolve(run, named)


def find_backbone(text: str) -> Published | Source:
    """A folder of published weights, or what `find_trained` takes."""
    folder = Path(text)
    if folder.exists() and not names_checkpoint(text) and not (folder / "config.yaml").exists():
        return Published(folder)
    return find_trained(text)


def said(side: Published | Source) -> dict[str, str]:
    """Where one side's weights are from: a folder, or a run with stage and checkpoint."""
    if isinstance(side, Published):
        return {"folder": str(side.path)}
    return {"run": side.run.name, "stage": side.stage, "checkpoint": side.checkpoint.name}


def model_of(source: Source) -> ModelConfig:
    """The model of the stage that trained a checkpoint."""
    return StageData.of(source.recipe, source.stage).model


def require_alike(model: ModelConfig, source: Source, parts: tuple[str, ...]) -> None:
    """Raise ConfigError naming the first key of `parts` in which the backbone's model differs."""
    theirs = model_of(source)
    for part in parts:
        own, other = (dict(leaves(getattr(each, part).model_dump(mode="json"))) for each in (model, theirs))
        for key in sorted((own.keys() | other.keys()) - LOOSE):
            if own.get(key) != other.get(key):
                raise ConfigError(
                    f"model.{part}.{key} is {own.get(key)}, and the backbone's is {other.get(key)}",
                    where=f"{source.run.name}:{source.stage}",
                    fix="give the backbone that the training started from, or leave the part out",
                )
