"""The named data sets of a recipe: where they lie, whether they are there, and a hash of what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from megavlm.platform.demo.places import MARK, expand
from megavlm.platform.errors import ConfigError, InputError, did_you_mean
from megavlm.platform.shards import ShardReader

from ..config import DataConfig, Stage


def set_folder(data: DataConfig, name: str) -> str:
    """The folder or URL of one named set; raises ConfigError for an unknown name."""
    if name not in data.sets:
        raise ConfigError(f"unknown data set '{name}'", where="data.sets", fix=did_you_mean(name, data.sets))
    return expand(data.sets[name])


def sets_of(stage: Stage) -> list[str]:
    """The names a stage draws from; those of weight 0 are left out."""
    return list(stage.mixture.shares)


def require_ratios(name: str, stage: Stage, sources: Mapping[str, str]) -> None:
    """Raise ConfigError where the stage's sets have to be given ratios, and some have none.

    `sources` is the recipe's: it says why nothing stands there.
    """
    undecided, key = stage.mixture.undecided, f"stages.{name}.mixture"
    if undecided:
        why = sources.get(f"{key}.ratios", "the recipe leaves them to you")
        raise ConfigError(
            f"stage '{name}' draws from {len(undecided)} sets without ratios: {why}",
            where=f"{key}.ratios",
            fix=f"give every set a weight, as {key}.sets.{undecided[0]}.weight=1 (0 leaves it out), or let the numbers "
            f"of their samples decide: {key}.ratios=sizes",
        )


def demo_data_missing(data: DataConfig, names: Iterable[str]) -> bool:
    """Whether some of these sets are the demo's and are not there yet."""
    return any(MARK in data.sets.get(name, "") and not Path(set_folder(data, name)).exists() for name in names)


def open_set(data: DataConfig, name: str) -> ShardReader:
    """Open one named set; raises InputError when it is missing or empty."""
    folder = set_folder(data, name)
    try:
        reader = ShardReader(folder)
    except InputError as error:
        fix = f"set data.sets.{name}=FOLDER"
        raise InputError(f"data set '{name}': {error.what}", where=f"{folder} (data.sets.{name})", fix=fix) from None
    if len(reader) == 0:
        raise InputError(f"data set '{name}' at {folder} holds no sample", where=f"data.sets.{name}")
    return reader
