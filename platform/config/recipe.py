"""Recipes: a YAML file of sections, resolved over its bases and under the command line, every value with its origin."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..registry import load_object
from .tree import Tree, leaves, merge, nest, parse_override, parse_yaml

# Sections and where their schema stands: strings only, since platform imports no other room.
SECTIONS = {
    "curation": "megavlm.data_curation.config:CurationConfig",
    "data": "megavlm.megatron_mm.config:DataConfig",
    "model": "megavlm.megatron_mm.config:ModelConfig",
    "stages": "megavlm.megatron_mm.config:Stages",
}
HEADER = ("name", "description", "base", "seed", "sources", "parameters")
RECIPE_PACKAGES = ("megavlm.data_curation.recipes", "megavlm.megatron_mm.recipes")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    `sections` holds the validated schema of each section present; `tree` the same as plain data, defaults included;
    `origins` one of "default", "recipe NAME", "file PATH", "command line" for every leaf of `tree`;
    `sources` the published origin of a value ("paper T10", "script ...", "our guess: ...") where the recipe states it;
    `parameters` the parameter counts by axis that the recipe claims, checked by the tests.
    """

    name: str
    description: str
    seed: int
    sections: dict[str, Any]
    tree: Tree
    origins: dict[str, str]
    sources: dict[str, str]
    parameters: dict[str, int]

    def section(self, name: str) -> Any:
        """A section's validated schema; raises ConfigError when the recipe has none."""
        if name not in self.sections:
            raise ConfigError(
                f"recipe '{self.name}' has no section '{name}'", fix=f"it has: {', '.join(self.sections) or 'none'}"
            )
        return self.sections[name]


def list_recipes() -> dict[str, Path]:
    """Every shipped recipe by name."""
    return dict(sorted((path.stem, path) for path in _shipped()))


def _shipped() -> Iterator[Path]:
    for package in RECIPE_PACKAGES:
        room, _, folder = package.rpartition(".")
        root = Path(str(importlib.resources.files(room))) / folder
        yield from root.glob("*.yaml")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Resolve a shipped recipe (by name) or a YAML file, then `a.b=c` overrides; raises ConfigError."""
    tree, origins = _read(name_or_path, seen=())
    for text in overrides:
        key, value = parse_override(text)
        tree = merge(tree, nest(key, value))
        origins |= {leaf: "command line" for leaf, _ in leaves(value, key)}
    return _validate(tree, origins)


def _read(name_or_path: str, seen: tuple[str, ...]) -> tuple[Tree, dict[str, str]]:
    path, origin = _locate(name_or_path)
    if str(path) in seen:
        raise ConfigError(f"recipe '{name_or_path}' is its own base", where=str(path), fix="break the circle of `base:`")
    own = parse_yaml(path.read_text(), where=str(path))
    if not isinstance(own, dict):
        raise ConfigError("a recipe is a mapping of sections", where=str(path))
    tree, origins = _read(own["base"], (*seen, str(path))) if own.get("base") else ({}, {})
    own.setdefault("name", path.stem)
    return merge(tree, own), origins | {leaf: origin for leaf, _ in leaves(own)}


def _locate(name_or_path: str) -> tuple[Path, str]:
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path, f"file {path}"
        raise ConfigError(f"no recipe file '{path}'", fix="give an existing YAML file or a name from `megavlm recipes list`")
    recipes = list_recipes()
    if name_or_path not in recipes:
        raise ConfigError(f"unknown recipe '{name_or_path}'", fix=did_you_mean(name_or_path, recipes))
    return recipes[name_or_path], f"recipe {name_or_path}"


def _validate(tree: Tree, origins: dict[str, str]) -> Recipe:
    for key in tree:
        if key not in SECTIONS and key not in HEADER:
            raise ConfigError(f"unknown key '{key}'", where=origins.get(key, key), fix=did_you_mean(key, [*SECTIONS, *HEADER]))
    sections = {name: _parse_section(name, tree, origins) for name in SECTIONS if name in tree}
    resolved = {"name": tree["name"], "seed": tree.get("seed", 1)}
    resolved |= {name: section.model_dump(mode="json") for name, section in sections.items()}
    return Recipe(
        name=tree["name"],
        description=tree.get("description", ""),
        seed=int(resolved["seed"]),
        sections=sections,
        tree=resolved,
        origins={leaf: origins.get(leaf, "default") for leaf, _ in leaves(resolved)},
        sources=_flat_sources(tree.get("sources", {})),
        parameters=tree.get("parameters", {}),
    )


def _flat_sources(sources: Tree) -> dict[str, str]:
    return {key: str(value) for key, value in leaves(sources)} if sources else {}


def _parse_section(name: str, tree: Tree, origins: dict[str, str]) -> Any:
    try:
        return load_object(SECTIONS[name]).parse(tree[name], where=name)
    except ConfigError as error:
        raise _complete_place(error, tree[name], name, origins) from None


def _complete_place(error: ConfigError, section: Any, name: str, origins: dict[str, str]) -> ConfigError:
    """Inside a point only the tail of the key is known; find the whole key and say where it was written."""
    tail = error.where or ""
    keys = [key for key, _ in leaves(section, name)]
    full = next((k for k in keys if k == tail or k.endswith("." + tail)), tail if tail.startswith(name) else f"{name}: {tail}")
    where = f"{full}  [{origins[full]}]" if full in origins else full
    return ConfigError(error.what, where=where, fix=error.fix)
