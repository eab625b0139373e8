"""`megavlm recipes list | show | diff`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from .cli import parser, split_overrides
from .config import Recipe, list_recipes, load_recipe
from .config.tree import leaves

GUESS = "our guess"


def list_main(argv: Sequence[str]) -> int:
    """Names, sizes and one-line descriptions of the shipped recipes."""
    args = parser("recipes list").parse_args(argv)
    recipes = [load_recipe(name) for name in list_recipes()]
    if args.json:
        rows = {r.name: {"description": r.description, "parameters": _parameters(r).get("total")} for r in recipes}
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(f"{r.name:<24}{_size(r):>8}  {r.description}" for r in recipes))
    return 0


def _size(recipe: Recipe) -> str:
    """79,379,593,344 parameters as "79.4B"; empty for a recipe without a model."""
    total = _parameters(recipe).get("total")
    if total is None:
        return ""
    unit, of = next(((unit, of) for unit, of in (("B", 10**9), ("M", 10**6)) if total >= of), ("", 1))
    return f"{total / of:.1f}{unit}" if unit else str(total)


def show_main(argv: Sequence[str]) -> int:
    """Every value of a resolved recipe with its origin, and the parameter counts by axis."""
    words, overrides = split_overrides(argv)
    p = parser("recipes show", epilog="example: megavlm recipes show nvlm-d-mini stages.sft.steps=50")
    p.add_argument("recipe", help="a shipped recipe's name or a YAML file")
    p.add_argument("--only", choices=list(KEEPS), help="only our guesses with the reason, or what is published")
    args = p.parse_args(words)
    recipe = load_recipe(args.recipe, overrides)
    rows = _rows(recipe, args.only)
    if args.json:
        print(json.dumps({"name": recipe.name, "parameters": _parameters(recipe), "values": rows}, indent=2))
    elif args.only:
        print("\n".join(f"{key} = {row['value']}\n    {row['source']}" for key, row in rows.items()))
    else:
        _print(recipe, rows)
    return 0


KEEPS: dict[str, Callable[[str], bool]] = {
    "guesses": lambda source: source.startswith(GUESS),
    "published": lambda source: bool(source) and not source.startswith(GUESS),
}


def _rows(recipe: Recipe, only: str | None) -> dict[str, dict[str, object]]:
    """Key -> value, origin and, where the recipe says it, source."""
    rows = {}
    for key, value in leaves(recipe.tree):
        source = recipe.sources.get(key, "")
        if only is None or KEEPS[only](source):
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
