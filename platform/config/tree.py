"""Nested mappings read from YAML: strict parsing, merging, and flat dotted views."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ..errors import ConfigError

Tree = dict[str, Any]


class _StrictLoader(yaml.CSafeLoader):
    """SafeLoader that refuses a key given twice and reads 1e-4 as a number (YAML 1.1 reads it as text)."""


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> Tree:
    seen: set[Any] = set()
    own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # `<<:` brings keys that ours replace
    for key_node in own:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise ConfigError(f"key '{key}' is given twice", where=str(key_node.start_mark).strip(), fix="keep one")
        seen.add(key)
    mapping: Tree = loader.construct_mapping(node, deep=True)  # type: ignore[assignment]  # keys are checked by schemas
    return mapping


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text; raises ConfigError naming `where` and the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", where=where) from None


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=value` -> ("a.b", value), the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ConfigError(f"'{text}' is no override", fix="write KEY.KEY=VALUE")
    return key, parse_yaml(value, where=f"command line: {text}")


def merge(under: Tree, over: Mapping[str, Any]) -> Tree:
    """`over` on top of `under`; mappings merge, everything else replaces, null in `over` removes the key.

    A mapping that names another point (`name:`) replaces the old one whole, since its options mean nothing there.
    """
    out = dict(under)
    for key, value in over.items():
        old = out.get(key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping):
            kept = old if isinstance(old, Mapping) and not _other_point(old, value) else {}
            out[key] = merge(dict(kept), value)
        else:
            out[key] = value
    return out


def _other_point(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "name" in new and "name" in old and new["name"] != old["name"]


def nest(dotted: str, value: Any) -> Tree:
    """("a.b", 1) -> {"a": {"b": 1}}."""
    tree: Any = value
    for key in reversed(dotted.split(".")):
        tree = {key: tree}
    return tree


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf as (dotted key, value); lists of scalars are leaves, an empty mapping is one too."""
    children: Iterator[tuple[Any, Any]] | None = None
    if isinstance(tree, Mapping) and tree:
        children = iter(tree.items())
    elif isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        children = iter(enumerate(tree))
    if children is None:
        yield prefix, tree
        return
    for key, value in children:
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
