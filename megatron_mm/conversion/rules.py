"""Weight maps: which published tensors make which parameter of ours. Data, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .transforms import Same, Transform

# In a name: the number of a layer, or of anything else there are several of; any words with dots between.
WILD = {"{n}": r"(0|[1-9]\d*)", "{any}": r"([\w.]+)"}


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
    """The rules of one axis, and published tensors that are left out, with the reason.

    `drawn` are parameters of ours that nobody published, so that training draws them.
    """

    def __init__(
        self, rules: Iterable[Rule], ignored: Mapping[str, str] | None = None, drawn: Iterable[str] = ()
    ) -> None:
        self.rules = tuple(rules)
        self.ignored = dict(ignored or {})
        self.drawn = tuple(drawn)

    def under(self, prefix: str) -> WeightMap:
        """The same map for published names that all begin with `prefix`."""
        rules = (replace(rule, theirs=tuple(prefix + name for name in rule.published)) for rule in self.rules)
        return WeightMap(rules, {prefix + name: why for name, why in self.ignored.items()}, self.drawn)

    def inside(self, prefix: str) -> WeightMap:
        """The same map for parameters of ours that all begin with `prefix`."""
        rules = (replace(rule, ours=prefix + rule.ours) for rule in self.rules)
        return WeightMap(rules, self.ignored, (prefix + name for name in self.drawn))

    def __add__(self, other: WeightMap) -> WeightMap:
        """Both maps' rules; where both name a parameter, the first one's holds."""
        return WeightMap(self.rules + other.rules, other.ignored | self.ignored, self.drawn + other.drawn)

    def is_drawn(self, ours: str) -> bool:
        """Whether no published tensor makes the parameter `ours`, and none is expected to."""
        return any(matched(pattern, ours) is not None for pattern in self.drawn)

    def made_of(self, ours: str) -> tuple[tuple[str, ...], Transform] | None:
        """The published names that make the parameter `ours`, and how; None where no rule names it."""
        if self.is_drawn(ours):
            return None
        for rule in self.rules:
            found = matched(rule.ours, ours)
            if found is not None:
                return tuple(filled(name, found) for name in rule.published), rule.how
        return None

    def names(self, published: str) -> bool:
        """Whether a published tensor is one of this axis, used or not."""
        patterns = (name for rule in self.rules for name in rule.published)
        return any(matched(pattern, published) is not None for pattern in patterns)

    def why_ignored(self, published: str) -> str | None:
        """Why a published tensor that no parameter is made of is left out; None where it should not be there."""
        found = (why for name, why in self.ignored.items() if matched(name, published) is not None)
        return next(found, None)


def matched(pattern: str, name: str) -> tuple[str, ...] | None:
    """What stands in `name` for the pattern's wild cards, in order; None where it is not of that pattern."""
    expression = re.escape(pattern)
    for card, meant in WILD.items():
        expression = expression.replace(re.escape(card), meant)
    found = re.fullmatch(expression, name, re.ASCII)
    return found and found.groups()


def filled(pattern: str, found: Iterable[str]) -> str:
    """The pattern with its wild cards filled in, in order."""
    rest = iter(found)
    return re.sub("|".join(map(re.escape, WILD)), lambda _: next(rest), pattern)
