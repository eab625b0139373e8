"""Which studies there are, and how one is read: a shipped one by name, or a YAML file. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.config import merge
from megavlm.platform.config.tree import leaves, nest, parse_override, parse_yaml
from megavlm.platform.errors import ConfigError, did_you_mean

from .schema import Study

FILES = {".yaml", ".yml"}


@dataclasses.dataclass(frozen=True)
class Found:
    """A study, where it was read from, and who set each of its values that is no default."""

    study: Study
    path: Path
    origins: dict[str, str]


def list_studies() -> dict[str, Path]:
    """Every shipped study by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def find_study(name_or_path: str, overrides: Sequence[str] = ()) -> Found:
    """Read a study, then `a.b=c` overrides of its keys; raises ConfigError.

    Lists are replaced whole: `seeds=[1,2]`.
    """
    path = _locate(name_or_path)
    tree = parse_yaml(path.read_text(), where=str(path))
    if not isinstance(tree, dict):
        raise ConfigError("a study is a mapping of keys", where=str(path), fix=f"its keys: {', '.join(_keys())}")
    origins = {key: f"file {path}" for key, _ in leaves(tree)}
    for text in overrides:
        key, value = parse_override(text)
        tree, origins = merge(tree, nest(key, value)), origins | {key: "command line"}
    tree.setdefault("name", path.stem)
    return Found(_parse(_beside(tree, path), path), path, origins)


def _keys() -> list[str]:
    return list(Study.model_fields)


def _parse(tree: dict[str, object], path: Path) -> Study:
    try:
        study: Study = Study.parse(tree)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{error.where or 'study'}  [{path}]", fix=error.fix) from None
    return study


def _beside(tree: dict[str, object], path: Path) -> dict[str, object]:
    """A recipe that is a file is looked for from the study's folder; a variant's own too."""
    recipe, variants = tree.get("recipe"), tree.get("variants")
    if isinstance(recipe, str) and Path(recipe).suffix in FILES:
        tree = tree | {"recipe": str((path.parent / recipe).resolve())}
    if isinstance(variants, list):
        tree = tree | {"variants": [_beside(each, path) if isinstance(each, dict) else each for each in variants]}
    return tree


def _locate(name_or_path: str) -> Path:
    path, shipped = Path(name_or_path), list_studies()
    if path.suffix in FILES:
        if path.is_file():
            return path
        raise ConfigError(f"no study file '{path}'", fix="give an existing YAML file or a name from `study list`")
    if name_or_path not in shipped:
        raise ConfigError(f"unknown study '{name_or_path}'", where="study", fix=did_you_mean(name_or_path, shipped))
    return shipped[name_or_path]
