"""Weight maps: which published tensors make which parameter of ours. Data, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .transforms import Same, Transform

NUMBER = "{n}"  # in a name, stands for the number of a layer, or of anything else there are several of


@dataclass(frozen=True)
class Rule:
    """One parameter of ours (its name within its axis), the published tensors it is made of, and how."""

    ours: str
    theirs: str | tuple[str, ...]
    how: Transform = Same()

    @property
    def published(self) -> tuple[str, ...]:
        """The published names, in the transform's order."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


class WeightMap:
    """The rules of one axis, and published tensors that are left out, with the reason."""

    def __init__(self, rules: Iterable[Rule], ignored: Mapping[str, str] | None = None) -> None:
        self.rules = tuple(rules)
        self.ignored = dict(ignored or {})

    def under(self, prefix: str) -> WeightMap:
        """The same map for published names that all begin with `prefix`."""
        rules = (replace(rule, theirs=tuple(prefix + name for name in rule.published)) for rule in self.rules)
        return WeightMap(rules, {prefix + name: why for name, why in self.ignored.items()})

    def __add__(self, other: WeightMap) -> WeightMap:
        """Both maps' rules; where both name a parameter, the first one's holds."""
        return WeightMap(self.rules + other.rules, other.ignored | self.ignored)

    def made_of(self, ours: str) -> tuple[tuple[str, ...], Transform] | None:
        """The published names that make the parameter `ours`, and how; None where no rule names it."""
        for rule in self.rules:
            numbers = numbers_in(rule.ours, ours)
            if numbers is not None:
                return tuple(numbered(name, numbers) for name in rule.published), rule.how
        return None

    def why_ignored(self, published: str) -> str | None:
        """Why a published tensor that no parameter is made of is left out; None where it should not be there."""
        found = (why for name, why in self.ignored.items() if numbers_in(name, published) is not None)
        return next(found, None)


def numbers_in(pattern: str, name: str) -> tuple[str, ...] | None:
    """The numbers that stand in `name` for the pattern's "{n}"; None where it is not of that pattern."""
    found = re.fullmatch(re.escape(pattern).replace(re.escape(NUMBER), r"(0|[1-9]\d*)"), name, re.ASCII)
    return found and found.groups()


def numbered(pattern: str, numbers: Iterable[str]) -> str:
    """The pattern with its "{n}" filled in, in order."""
    for number in numbers:
        pattern = pattern.replace(NUMBER, number, 1)
    return pattern
