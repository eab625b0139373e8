"""`megavlm data sources`: the sets a recipe draws from, where they can be had, and which of them are here. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.demo.places import MARK
from megavlm.platform.storage import exists

from ..config import Stage
from ..data.sets import set_folder, sets_of
from .table import UNKNOWN, Source, table

EPILOG = """\
examples:
  megavlm data sources nvlm-d-72b          the sets of a recipe's stages, and whether they are here
  megavlm data sources                     every set of the papers' tables
"""


def main(argv: Sequence[str]) -> int:
    """Print the table; exit code 0 also where sets are missing."""
    words, overrides = split_overrides(argv)
    p = parser("data sources", epilog=EPILOG)
    p.add_argument("recipe", nargs="?", help="a shipped recipe's name or a YAML file (default: every known set)")
    args = p.parse_args(words)
    rows = of_recipe(load_recipe(args.recipe, overrides)) if args.recipe else [_row(each) for each in table().values()]
    if args.json:
        print(json.dumps({"recipe": args.recipe, "sets": rows}, indent=2))
    else:
        print("\n".join(_readable(row) for row in rows))
        print(_counted(rows))
    return 0


def of_recipe(recipe: Recipe) -> list[dict[str, Any]]:
    """A row for each set that the recipe's stages draw from or are evaluated on, then those that such a set is made of.

    A recipe's row also has `stages`, `folder` and `here`; a set of the recipe's that no table knows has `known` false.
    """
    data, stages, known = recipe.section("data"), recipe.section("stages"), table()
    users: dict[str, list[str]] = {}
    for stage, of in stages.items():
        drawn = sets_of(of) if isinstance(of, Stage) else []
        for name in dict.fromkeys([*drawn, *of.evaluate.values()]):
            users.setdefault(name, []).append(stage)
    rows = []
    for name, of in users.items():
        folder, demo = set_folder(data, name), MARK in data.sets[name]  # the demo's may be called like a paper's
        row = _row(known[name]) if name in known and not demo else _unknown(name, demo)
        rows.append(row | {"stages": of, "folder": folder, "here": exists(folder)})
    made_of = {known[name].made_of for name in users if name in known} - {None}
    return rows + [_row(each) for each in known.values() if made_of & set(each.roles)]


def _row(source: Source) -> dict[str, Any]:
    return source.model_dump(mode="json") | {"known": True}


def _unknown(name: str, demo: bool) -> dict[str, Any]:
    told = "made by `megavlm demo --only data`" if demo else "a set of your own"
    return {"name": name, "known": False, "access": "made here" if demo else UNKNOWN, "open": told}


def _readable(row: dict[str, Any]) -> str:
    """Three lines at most: name and roles; place and licence; what is not known."""
    here = {True: "here", False: "not here", None: ""}[row.get("here")]
    size = [f"{row['samples']:,} samples"] if row.get("samples") else []
    what = ", ".join([*row.get("tables", []), row.get("task", ""), *size]).strip(", ")
    place = " ".join(filter(None, [row.get("where"), row.get("part")])) or row["access"]
    reads = {"convert": row.get("converter"), "format": row.get("format")}
    means = "; ".join(f"{key} {value}" for key, value in reads.items() if value)
    second = "; ".join(filter(None, [place, row["access"] if row.get("where") else "", means]))
    lines = [f"{row['name']:<24}{here:<10}{what}", f"    {second}; licence: {row.get('licence', UNKNOWN)}"]
    return "\n".join([*lines, *([f"    {row['open']}"] if row.get("open") else [])])


def _counted(rows: Sequence[dict[str, Any]]) -> str:
    ready = sum(bool(row.get("converter") or row.get("format")) for row in rows)
    asked = [row for row in rows if "here" in row]
    here = f"; {sum(row['here'] for row in asked)} of {len(asked)} that the recipe names are here" if asked else ""
    return f"{len(rows)} sets, {ready} of which have a reader here{here}"
