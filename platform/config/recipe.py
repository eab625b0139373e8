"""Recipes: a YAML file of sections, resolved over its bases and under the command line, every value with its origin."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ..errors import ConfigError, did_you_mean
from ..registry import load_object
from .schema import Config
from .tree import Tree, leaves, merge, nest, parse_override, parse_yaml

# Sections and where their schema stands: strings only, since platform imports no other room.
SECTIONS = {
    "curation": "megavlm.data_curation.config:CurationConfig",
    "data": "megavlm.megatron_mm.config:DataConfig",
    "model": "megavlm.megatron_mm.config:ModelConfig",
    "run": "megavlm.megatron_mm.config:Run",
    "stages": "megavlm.megatron_mm.config:Stages",
}
RECIPE_PACKAGES = ("megavlm.data_curation.recipes", "megavlm.megatron_mm.recipes")


class Header(Config):
    """The keys of a recipe beside its sections."""

    name: str = Field(pattern=r"^\w[\w.-]*$")  # names the run folder too
    description: str = ""
    base: str | None = None  # the recipe or file under this one
    seed: int = 1
    sources: dict[str, Any] = {}
    parameters: dict[str, int] = {}


HEADER = tuple(Header.model_fields)


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
        if key == "base":
            raise ConfigError("an override cannot set a recipe's base", where=text, fix="name the other recipe")
        tree, origins = _over(tree, origins, nest(key, value), "command line")
    return _validate(tree, origins)


def _over(tree: Tree, origins: dict[str, str], own: Tree, origin: str) -> tuple[Tree, dict[str, str]]:
    """`own` on top of `tree`; what it removed or replaced keeps no origin, and no source but its own."""
    merged, before = merge(tree, own), dict(leaves(tree))
    own_sources = own.get("sources", {})
    replaced = {leaf for leaf, value in leaves(own) if leaf not in before or before[leaf] != value} - own_sources.keys()
    left = [leaf for leaf, _ in leaves(merged)]
    if "sources" in merged:
        over = replaced | (before.keys() - set(left))
        merged["sources"] = {key: told for key, told in merged["sources"].items() if key not in over}
    origins = origins | {leaf: origin for leaf, _ in leaves(own)}
    return merged, {leaf: origins[leaf] for leaf in left if leaf in origins}


def _read(name_or_path: str, seen: tuple[str, ...]) -> tuple[Tree, dict[str, str]]:
    path, origin = _locate(name_or_path)
    here = str(path.resolve())
    if here in seen:
        raise ConfigError(
            f"recipe '{name_or_path}' is its own base", where=str(path), fix="break the circle of `base:`"
        )
    own = parse_yaml(path.read_text(), where=str(path))
    if not isinstance(own, dict):
        raise ConfigError("a recipe is a mapping of sections", where=str(path))
    tree, origins = _read(_beside(own["base"], path), (*seen, here)) if own.get("base") else ({}, {})
    own.setdefault("name", path.stem)
    if "sources" in own:
        own["sources"] = dict(leaves(own["sources"])) if own["sources"] else {}
    return _over(tree, origins, own, origin)


def _beside(base: Any, path: Path) -> str:
    """A base that is a file is looked for from the folder of the file that names it."""
    if not isinstance(base, str):
        raise ConfigError(f"base is the name of a recipe or file, not {base!r}", where=str(path))
    return str(path.parent / base) if Path(base).suffix in {".yaml", ".yml"} else base


def _locate(name_or_path: str) -> tuple[Path, str]:
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path, f"file {path}"
        raise ConfigError(
            f"no recipe file '{path}'", fix="give an existing YAML file or a name from `megavlm recipes list`"
        )
    recipes = list_recipes()
    if name_or_path not in recipes:
        raise ConfigError(f"unknown recipe '{name_or_path}'", fix=did_you_mean(name_or_path, recipes))
    return recipes[name_or_path], f"recipe {name_or_path}"


def _validate(tree: Tree, origins: dict[str, str]) -> Recipe:
    for key in tree:
        if key not in SECTIONS and key not in HEADER:
            fix = did_you_mean(str(key), [*SECTIONS, *HEADER])
            raise ConfigError(f"unknown key '{key}'", where=_place(str(key), origins), fix=fix)
    header = _parse(Header, {key: tree[key] for key in HEADER if key in tree}, "", origins)
    present = {name: load_object(schema) for name, schema in SECTIONS.items() if name in tree}
    sections = {name: _parse(schema, tree[name], name, origins) for name, schema in present.items()}
    resolved = {"name": header.name, "seed": header.seed}
    resolved |= {name: section.model_dump(mode="json") for name, section in sections.items()}
    return Recipe(
        name=header.name,
        description=header.description,
        seed=header.seed,
        sections=sections,
        tree=resolved,
        origins={leaf: _origin(leaf, origins) for leaf, _ in leaves(resolved)},
        sources={key: str(told) for key, told in header.sources.items()},
        parameters=header.parameters,
    )


def _origin(leaf: str, origins: dict[str, str]) -> str:
    """Where a leaf comes from. A point written as just its name stands in the file without the `.name` it gets here."""
    short = leaf.removesuffix(".name")
    spellings = (leaf,) if short == leaf else (leaf, short, re.sub(r"\.\d+$", "", short))
    return next((origins[key] for key in spellings if key in origins), "default")


def _parse(schema: Any, data: Any, name: str, origins: dict[str, str]) -> Any:
    try:
        return schema.parse(data, where=name)
    except ConfigError as error:
        raise ConfigError(error.what, where=_place(error.where or name, origins), fix=error.fix) from None


def _place(key: str, origins: dict[str, str]) -> str:
    """A key with where it was written. Deep inside a point the middle of a key is not known: then it is looked up."""
    owner, _, last = key.rpartition(".")
    inner = (leaf for leaf in origins if owner and leaf.startswith(f"{owner}.") and leaf.endswith(f".{last}"))
    if key in origins:
        return f"{key}  [{origins[key]}]"
    if below := next((leaf for leaf in origins if leaf.startswith(f"{key}.")), None):
        return f"{key}  [{origins[below]}]"
    return next((f"{leaf}  [{origins[leaf]}]" for leaf in inner), key)
