"""Builds a stage's pack manifest: measure the sets, draw the mixture, pack, write down. Loads no torch."""

from __future__ import annotations

import dataclasses
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megavlm.platform.config import Recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import default_runs_root
from megavlm.platform.shards import ShardReader

from ..config import DataConfig, ModelConfig, Stage
from .columns import Sizes
from .format import FORMAT
from .manifest import Manifest
from .measure import Measure, template
from .measured import MeasuredSet, measured_set
from .mixture import global_batches
from .sets import open_set, set_folder, sets_of
from .tokenizer import TextTokenizer, load_tokenizer
from .write import ManifestWriter, manifest_writer

# Of a fingerprint, what the sizes of samples depend on.
SIZE_DEPENDS_ON = ("tokenizer", "template", "tiling", "injection", "tokens_per_tile")


@dataclasses.dataclass(frozen=True)
class StageData:
    """All that decides what a stage's packs hold."""

    name: str
    stage: Stage
    model: ModelConfig
    data: DataConfig
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, stage: str) -> StageData:
        """A stage of a recipe, with its own model and template; raises ConfigError when there is no such stage."""
        stages, model, data = (recipe.section(name) for name in ("stages", "model", "data"))
        of: Stage = stages[stage]
        if of.template is not None:
            data = data.model_copy(update={"template": of.template})
        return cls(stage, of, model.changed(of.model, where=f"stages.{stage}.model"), data, recipe.seed)

    def tokenizer(self) -> TextTokenizer:
        """The recipe's tokenizer; raises ConfigError when it lacks a token of the recipe's template."""
        tokenizer = load_tokenizer(self.data.tokenizer)
        template(self.model, tokenizer, self.data.template)
        return tokenizer

    def open_sets(self) -> dict[str, ShardReader]:
        """The sets this stage draws from."""
        return {name: open_set(self.data, name) for name in sets_of(self.stage)}

    def folders(self) -> dict[str, str]:
        """Where they lie."""
        return {name: set_folder(self.data, name) for name in sets_of(self.stage)}

    def draw_seed(self) -> int:
        """Stages of one recipe draw differently; the same stage always alike."""
        return zlib.crc32(f"{self.seed}/{self.name}".encode())

    def fingerprint(self, sets: Mapping[str, ShardReader] | None = None) -> dict[str, Any]:
        """What a manifest must have been made for, by ingredient, so that a refusal can name the one that differs.

        The number of steps is not among them: a longer plan begins with the shorter one. Without `sets`, what they hold
        is left out.
        """
        mixture = self.stage.mixture
        told = {
            "format": FORMAT,
            "tokenizer": self.tokenizer().hash,
            "template": self.data.template.model_dump(mode="json"),
            "tiling": self.model.tiling.model_dump(mode="json"),
            "injection": self.model.injection.model_dump(mode="json"),
            "tokens_per_tile": self.model.tokens_per_tile,
            "sequence_length": mixture.sequence_length,
            "batch": mixture.global_batch.model_dump(mode="json"),
            "mixture": {name: share.model_dump(mode="json") for name, share in mixture.shares.items()},
            "temperature": mixture.temperature,
            "order": mixture.order,
            "pack": mixture.pack,
            "shuffle_window": mixture.shuffle_window,
            "seed": self.draw_seed(),
        }
        if mixture.text_share is not None:  # told only where it is used: older manifests stay what they are
            told["text"] = mixture.model_dump(include={"text_sets", "text_share", "text_share_of"})
        return told if sets is None else told | {"sets": {name: reader.digest for name, reader in sets.items()}}


def build_manifest(
    spec: StageData, path: Path, alive: Callable[[], object] = lambda: None, cache: Path | None = None
) -> Manifest:
    """Write the stage's manifest into the folder `path`; returns it opened.

    The sizes of samples are kept in the folder `cache` (default: `measured_folder`), for other stages and recipes to
    find. `alive` is called for every sample measured and every global batch; what it raises ends the work.
    """
    sets, fingerprint = spec.open_sets(), spec.fingerprint()
    by = {name: fingerprint[name] for name in SIZE_DEPENDS_ON}
    cache, measure = cache or measured_folder(path), Measure.of(spec.model, spec.data)
    measured = {name: measured_set(name, reader, measure, by, cache, alive) for name, reader in sets.items()}
    with manifest_writer(path) as writer:
        writer.describe(spec.fingerprint(sets), sets)
        for name, of in measured.items():
            _leave_out(writer, name, of, sets[name], spec.stage.mixture.sequence_length)
        write_batches(writer, spec, {name: of.sizes for name, of in measured.items()}, alive)
    return Manifest(path)


def write_batches(
    writer: ManifestWriter, spec: StageData, sizes: Mapping[str, Sizes], alive: Callable[[], object]
) -> None:
    """Write as many global batches as the stage has steps; raises ConfigError when its sets end before that."""
    steps = spec.stage.steps
    for batch in itertools.islice(global_batches(spec.stage.mixture, sizes, spec.draw_seed()), steps):
        writer.add(batch)
        alive()
    if writer.batches < steps:
        raise ConfigError(
            f"the mixture's epochs and caps make {writer.batches} global batches, and the stage has {steps} steps",
            where=f"stages.{spec.name}.steps",
            fix=f"set stages.{spec.name}.steps={writer.batches}" if writer.batches else "make the global batch smaller",
        )


def measured_folder(path: Path) -> Path:
    """Where sizes are kept for a manifest at `path`: $MEGAVLM_CACHE/measured, else with the runs, else beside it.

    Beside it, too, where the runs' folder is shared and what is kept there belongs to somebody else.
    """
    if cache := os.environ.get("MEGAVLM_CACHE"):
        return Path(cache) / "measured"
    runs = default_runs_root()
    common = runs / ".measured"
    inside = path.absolute().is_relative_to(runs.absolute())
    return common if inside and os.access(common if common.exists() else runs, os.W_OK) else path.parent / ".measured"


def _leave_out(writer: ManifestWriter, name: str, of: MeasuredSet, reader: ShardReader, capacity: int) -> None:
    """List the samples of a set that are not drawn."""
    lines = itertools.chain(of.rejected(), _too_long(of.sizes, reader, capacity))
    while some := list(itertools.islice(lines, 4096)):
        writer.left_out([{"set": name, **line} for line in some])


def _too_long(sizes: Sizes, reader: ShardReader, capacity: int) -> Iterator[dict[str, Any]]:
    """Those that a packed sequence has no room for: of the same measurement, another recipe may ask another length."""
    for first, last in itertools.pairwise(sizes.starts.tolist()):
        tokens = sizes.tokens(first, last)
        for inside in np.flatnonzero(tokens > capacity).tolist():
            detail = f"{tokens[inside]} tokens, and a pack holds {capacity}"
            yield {"index": first + inside, "key": reader.key(first + inside), "reason": "too_long", "detail": detail}
