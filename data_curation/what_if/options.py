"""What is asked: `STAGE.OPTION=VALUE` or `=A,B,C`, as one configuration for each combination of values."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from megavlm.platform.config.tree import merge, nest, parse_yaml
from megavlm.platform.errors import ConfigError

from ..config import CurationConfig
from ..run import CurationRun

WHERE = "curation.stages"


@dataclasses.dataclass(frozen=True)
class Asked:
    """One option with the values it is to have: `stage` and the dotted `option` inside it."""

    stage: str
    option: str
    values: tuple[Any, ...]

    @property
    def key(self) -> str:
        """As a person writes it."""
        return f"{self.stage}.{self.option}"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A configuration to be tried, and the values of the options asked for in it, defaults resolved."""

    options: Mapping[str, Any]
    config: CurationConfig

    def __str__(self) -> str:
        return " ".join(f"{key}={shown(value)}" for key, value in self.options.items())


def parse_asked(run: CurationRun, words: Sequence[str]) -> list[Asked]:
    """`select.nearest=50,100` -> Asked("select", "nearest", (50, 100)); raises ConfigError.

    Refused are options that decide what is measured: those take a run.
    """
    asked = [_parse(run, word) for word in words]
    if twice := [one.key for place, one in enumerate(asked) if one.key in {other.key for other in asked[:place]}]:
        raise ConfigError(f"'{twice[0]}' is asked for twice", where="--what-if", fix=f"{twice[0]}=A,B tries both")
    for one in asked:
        _refuse_measuring(run, one)
    return asked


def _parse(run: CurationRun, word: str) -> Asked:
    key, equals, text = word.partition("=")
    key = key.removeprefix(f"{WHERE}.")
    stages = run.config.stages.root
    stage = next((name for name in stages if key.startswith(f"{name}.")), None)  # may be "package.module:Class"
    if stage is None or not equals:
        what = f"'{word}' names no option of a stage of this run"
        raise ConfigError(what, where="--what-if", fix=f"write STAGE.OPTION=VALUE; STAGE is one of {_known(run)}")
    # The list's brackets leave commas inside brackets of the values' own alone.
    values = parse_yaml(f"[{text}]", where=f"--what-if {word}")
    if not values:
        raise ConfigError(f"'{word}' gives no value", where="--what-if", fix=f"{key}=VALUE or {key}=A,B,C")
    return Asked(stage, key.removeprefix(f"{stage}."), tuple(values))


def _refuse_measuring(run: CurationRun, asked: Asked) -> None:
    stage = run.config.stages[asked.stage]
    measures = asked.option.partition(".")[0] in stage.measures_by
    if stage.from_sidecars and not measures:
        return
    what = f"'{asked.key}' decides what is measured" if measures else f"stage '{asked.stage}' is not decided anew"
    raise ConfigError(
        f"{what}, and `curate select` reads only what was measured; it can ask about {_known(run)}",
        where=f"{WHERE}.{asked.key}",
        fix=f"run it in a copy: {command_in_a_copy(run, {asked.key: asked.values[0]})}",
    )


def _known(run: CurationRun) -> str:
    return ", ".join(stage.name for stage in run.config.stages if stage.from_sidecars) or "none"


def at_present(run: CurationRun, asked: Sequence[Asked]) -> Variant:
    """What the run itself has."""
    return Variant({one.key: _resolved(run.config, one, None) for one in asked}, run.config)


def variants(run: CurationRun, asked: Sequence[Asked]) -> list[Variant]:
    """Every combination of values, the last option's changing fastest; raises ConfigError for one that cannot be."""
    combinations = itertools.product(*(one.values for one in asked))
    return [_variant(run, list(zip(asked, values, strict=True))) for values in combinations]


def _variant(run: CurationRun, values: Sequence[tuple[Asked, Any]]) -> Variant:
    tree = run.folder.config()["curation"]
    for one, value in values:  # merged as `curate run` merges its overrides
        tree = merge(tree, {"stages": {one.stage: nest(one.option, value)}})
    config = CurationConfig.parse(tree, where="curation")
    return Variant({one.key: _resolved(config, one, value) for one, value in values}, config)


def _resolved(config: CurationConfig, asked: Asked, value: Any) -> Any:
    """What the option is in the end: null, for one, means the default."""
    found: Any = config.stages[asked.stage].model_dump(mode="json")
    for part in asked.option.split("."):
        found = found.get(part, value) if isinstance(found, Mapping) else value
    return found


def command(run: CurationRun, options: Mapping[str, Any], folder: str | None = None) -> str:
    """The command line that gives a run these options."""
    folder = folder or str(run.folder.root)
    words = [f"{WHERE}.{key}={shown(value)}" for key, value in options.items()]
    return shlex.join(["megavlm", "curate", "run", f"{folder}/config.yaml", *words, "--out", folder])


def command_in_a_copy(run: CurationRun, options: Mapping[str, Any]) -> str:
    """The same, leaving the run as it is."""
    copy = f"{run.folder.root}-copy"
    return f"{shlex.join(['cp', '-r', str(run.folder.root), copy])} && {command(run, options, copy)}"


def shown(value: Any) -> str:
    """As YAML on one line, which JSON is; words that YAML reads as they stand stay plain."""
    plain = isinstance(value, str) and parse_yaml(value, where="") == value
    return value if plain else json.dumps(value)
