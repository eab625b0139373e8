"""Builds a stage's pack manifest: measure the sets, draw the mixture, pack, write down. Loads no torch."""

from __future__ import annotations

import dataclasses
import itertools
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megavlm.platform.config import Recipe
from megavlm.platform.progress import Progress, progress
from megavlm.platform.shards import ShardReader
from megavlm.platform.storage import write_atomic

from ..config import DataConfig, ModelConfig, Stage
from .manifest import Entry, Manifest, Pack, write_manifest
from .measure import Measured, Rejected, measure, template
from .packing import Draw, draw, pack
from .sets import open_set, set_hash, sets_of
from .tokenizer import TextTokenizer, load_tokenizer


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
        """A stage of a recipe; raises ConfigError when the recipe has no such stage."""
        stages, model, data = (recipe.section(name) for name in ("stages", "model", "data"))
        return cls(stage, stages[stage], model, data, recipe.seed)

    def tokenizer(self) -> TextTokenizer:
        """The recipe's tokenizer; raises ConfigError when it does not fit the decoder's vocabulary."""
        return load_tokenizer(self.data.tokenizer)

    def open_sets(self) -> dict[str, ShardReader]:
        """The sets this stage draws from."""
        return {name: open_set(self.data, name) for name in sets_of(self.stage)}

    def packs_needed(self) -> int:
        """Rows of the manifest that the stage's steps use."""
        return self.stage.steps * self.stage.mixture.packs_per_batch

    def draw_seed(self) -> int:
        """Stages of one recipe draw differently; the same stage always alike."""
        return zlib.crc32(f"{self.seed}/{self.name}".encode())

    def fingerprint(self, sets: dict[str, ShardReader]) -> dict[str, Any]:
        """What a manifest must have been made for, by ingredient, so that a refusal can name the one that differs.

        The number of steps is not among them: a longer plan begins with the shorter one.
        """
        mixture = self.stage.mixture
        return {
            "format": 1,
            "tokenizer": self.tokenizer().hash,
            "template": self.data.template,
            "system": self.data.system,
            "tiling": self.model.tiling.model_dump(mode="json"),
            "injection": self.model.injection.model_dump(mode="json"),
            "tokens_per_tile": self.model.tokens_per_tile,
            "sequence_length": mixture.sequence_length,
            "packs_per_batch": mixture.packs_per_batch,
            "mixture": {name: mixture.weights[name] for name in sets_of(self.stage)},
            "seed": self.draw_seed(),
            "sets": {name: set_hash(reader) for name, reader in sets.items()},
        }


def build_manifest(spec: StageData, path: Path, alive: Callable[[], object] = lambda: None) -> Manifest:
    """Write the stage's manifest to `path`, and the samples left out beside it; returns it opened.

    `alive` is called for every sample measured and every pack drawn; what it raises ends the work.
    """
    sets = spec.open_sets()
    chat = template(spec.model, spec.tokenizer(), spec.data.system)
    capacity = spec.stage.mixture.sequence_length
    measured = {}
    for name, reader in sets.items():
        bar: Progress[Any] = progress(total=len(reader), label=f"measuring {name}", unit="sample")
        with bar:
            measured[name] = measure(name, reader, chat, spec.model.tiling, capacity, _both(bar.advance, alive))
    lengths = {name: each.tokens for name, each in measured.items()}
    draws = draw(lengths, spec.stage.mixture.weights, spec.draw_seed())
    rows = itertools.islice(pack(draws, capacity, spec.draw_seed()), spec.packs_needed())
    per_batch = spec.stage.mixture.packs_per_batch
    packs = []
    for i, row in enumerate(rows):
        packs.append(Pack(i, i // per_batch, tuple(_entry(item, measured) for item in row)))
        alive()
    write_manifest(path, packs, spec.fingerprint(sets))
    _write_rejected(path, [line for each in measured.values() for line in each.rejected])
    return Manifest(path)


def _both(advance: Callable[[int], object], alive: Callable[[], object]) -> Callable[[int], object]:
    return lambda count: (advance(count), alive())


def _entry(item: Draw, measured: dict[str, Measured]) -> Entry:
    of = measured[item.set]
    tiles, targets = int(of.tiles[item.index]), int(of.targets[item.index])
    return Entry(
        item.set,
        item.index,
        of.keys[item.index],
        item.epoch,
        item.length,
        tiles,
        targets,
        1.0,
        list(of.images[item.index]),
    )


def rejected_path(path: Path) -> Path:
    """Where the samples left out of the manifest at `path` are listed."""
    return path.with_suffix(".rejected.jsonl")


def _write_rejected(path: Path, rejected: list[Rejected]) -> None:
    lines = (json.dumps(dataclasses.asdict(line)) + "\n" for line in rejected)
    write_atomic(rejected_path(path), "".join(lines).encode())
