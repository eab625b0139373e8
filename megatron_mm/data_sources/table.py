"""The table of data sets: one YAML file for each paper, read into rows. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from megavlm.platform.config import Config
from megavlm.platform.config.tree import parse_yaml
from megavlm.platform.errors import ConfigError

HERE = Path(__file__).parent
UNKNOWN = "unknown"
Access = Literal["public", "gated", "not public", "made here", "unknown"]


class Source(Config):
    """One data set: what a paper uses it for, where a copy can be read today, and what is not known."""

    name: str  # as recipes call it
    title: str  # as the paper spells it
    paper: str
    roles: list[str]  # pretraining, sft, text, gate
    tables: list[str]  # of the paper, one for each role
    task: str
    samples: int | None = None  # as the paper counts them, which is often in thousands
    where: str | None = None  # a page or file
    part: str | None = None  # which configuration of that place
    access: Access = "unknown"
    licence: str = UNKNOWN
    converter: str | None = None  # KIND of `data convert` that reads what lies there
    format: str | None = None  # text format of `curate run` that reads it
    made_of: str | None = None  # the role of the sets it is made of
    evidence: str | None = None  # where place and licence were found
    open: str | None = None  # what is not known, or has to be done first


def table() -> dict[str, Source]:
    """Every known set by name; raises ConfigError where two papers' files name one twice, or a row has a wrong key."""
    rows: dict[str, Source] = {}
    for path in sorted(HERE.glob("*.yaml")):
        found = _read(path)
        if twice := rows.keys() & found.keys():
            raise ConfigError(f"data set '{min(twice)}' is in two tables", where=str(path), fix="keep one")
        rows |= found
    return rows


def _read(path: Path) -> dict[str, Source]:
    whole = parse_yaml(path.read_text(), where=str(path))
    return {name: _source(name, row, whole) for name, row in whole["sets"].items()}


def _source(name: str, row: dict[str, Any], whole: dict[str, Any]) -> Source:
    """A row, with what it takes from its collection, the evidence in words, and its tables."""
    row, own = dict(row), row.get("evidence")
    collection = whole["collections"][row.pop("at")] if "at" in row else {}
    evidence = [collection.get("evidence"), whole["evidence"][own] if own else None]
    filled = {"name": name, "paper": whole["paper"], "tables": [whole["tables"][role] for role in row["roles"]]}
    filled |= {"access": "public" if collection or "where" in row else UNKNOWN} | collection | row
    return Source.parse(filled | {"evidence": "; ".join(filter(None, evidence)) or None}, where=f"sets.{name}")
