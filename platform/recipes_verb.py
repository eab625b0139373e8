"""`megavlm recipes list | show | diff`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .cli import parser, split_overrides
from .config import Recipe, list_recipes, load_recipe
from .config.tree import leaves


def list_main(argv: Sequence[str]) -> int:
    """Names and one-line descriptions of the shipped recipes."""
    args = parser("recipes list").parse_args(argv)
    rows = {name: load_recipe(name).description for name in list_recipes()}
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(f"{name:<24}{text}" for name, text in rows.items()))
    return 0


def show_main(argv: Sequence[str]) -> int:
    """Every value of a resolved recipe with its origin, and the parameter counts by axis."""
    words, overrides = split_overrides(argv)
    p = parser("recipes show", epilog="example: megavlm recipes show nvlm-d-mini stages.sft.steps=50")
    p.add_argument("recipe", help="a shipped recipe's name or a YAML file")
    p.add_argument("--only", choices=["guesses"], help="only the values that are our guess, with the reason")
    args = p.parse_args(words)
    recipe = load_recipe(args.recipe, overrides)
    rows = _rows(recipe, only_guesses=args.only == "guesses")
    if args.json:
        print(json.dumps({"name": recipe.name, "parameters": _parameters(recipe), "values": rows}, indent=2))
    else:
        _print(recipe, rows)
    return 0


def _rows(recipe: Recipe, only_guesses: bool) -> dict[str, dict[str, object]]:
    rows = {}
    for key, value in leaves(recipe.tree):
        source = recipe.sources.get(key)
        if only_guesses and not (source or "").startswith("our guess"):
            continue
        rows[key] = {"value": value, "origin": recipe.origins[key]} | ({"source": source} if source else {})
    return rows


def _parameters(recipe: Recipe) -> dict[str, int]:
    return recipe.sections["model"].parameter_counts() if "model" in recipe.sections else {}


def _print(recipe: Recipe, rows: dict[str, dict[str, object]]) -> None:
    print(f"# {recipe.name}: {recipe.description}")
    for axis, count in _parameters(recipe).items():
        print(f"# parameters.{axis} = {count:,}")
    width = min(max((len(key) for key in rows), default=0), 56)
    for key, row in rows.items():
        source = f"; {row['source']}" if "source" in row else ""
        print(f"{key:<{width}} = {row['value']!s:<24} [{row['origin']}{source}]")


def diff_main(argv: Sequence[str]) -> int:
    """The keys in which two recipes differ."""
    p = parser("recipes diff")
    p.add_argument("a")
    p.add_argument("b")
    args = p.parse_args(argv)
    a, b = (dict(leaves(load_recipe(name).tree)) for name in (args.a, args.b))
    changed = {
        key: {args.a: a.get(key), args.b: b.get(key)} for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    }
    if args.json:
        print(json.dumps(changed, indent=2))
    else:
        print(
            "\n".join(f"{key}: {row[args.a]!r} -> {row[args.b]!r}" for key, row in changed.items()) or "no difference"
        )
    return 0
