"""A resolved configuration as YAML that is still a recipe, each value that is no default followed by its origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml


def to_yaml(config: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """`config` as block YAML; `origins` maps dotted keys to where the value came from, shown as comments."""
    return "\n".join(_mapping(config, origins, prefix="", pad="")) + "\n"


def _mapping(tree: Mapping[str, Any], origins: Mapping[str, str], prefix: str, pad: str) -> Iterator[str]:
    for key, value in tree.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        head = f"{pad}{_scalar(key)}:"
        if isinstance(value, Mapping) and value:
            yield head
            yield from _mapping(value, origins, dotted, pad + "  ")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield head
            yield from _sequence(value, origins, dotted, pad + "  ")
        else:
            yield f"{head} {_scalar(value)}{_comment(origins.get(dotted))}"


def _sequence(items: list[Any], origins: Mapping[str, str], prefix: str, pad: str) -> Iterator[str]:
    for index, item in enumerate(items):
        dotted = f"{prefix}.{index}"
        if not isinstance(item, Mapping) or not item:
            yield f"{pad}- {_scalar(item)}{_comment(origins.get(dotted))}"
            continue
        first, *rest = _mapping(item, origins, dotted, pad + "  ")
        yield f"{pad}- {first.removeprefix(pad + '  ')}"
        yield from rest


def _scalar(value: Any) -> str:
    """One line of YAML for a scalar, or for a list or empty mapping in flow style."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None  # escapes, hence one line
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()


def _comment(origin: str | None) -> str:
    if origin is None or origin == "default":
        return ""
    return "  # " + "".join(letter if letter.isprintable() else " " for letter in origin)
