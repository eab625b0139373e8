"""How a value looks in a report."""

from __future__ import annotations

from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A value as text, and whether it is a number (numbers are aligned right)."""

    text: str
    number: bool


def cell(value: Any) -> Cell:
    """Integers with thousands separators, floats with four significant digits or as whole numbers, None as a dash."""
    if value is None:
        return Cell("–", False)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", False)
    if isinstance(value, int):
        return Cell(f"{value:,}", True)
    if isinstance(value, float):
        return Cell(f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}", True)
    return Cell(str(value), False)
