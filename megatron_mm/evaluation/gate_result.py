"""What a gate found: drops with their intervals, and the verdict. Loads no torch."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from .sentence import sentence

Verdict = Literal["pass", "fail", "undecided"]
EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 3, "undecided": 5}


@dataclasses.dataclass(frozen=True)
class Drop:
    """How much worse something is than its baseline, and what is said of it. `lost`, `gained`: items worth less, more.

    Both ends are of the gate's confidence. `low_shared` is what a drop beyond the allowed one is judged by where the
    gate looks at every suite: the lower end at a level that all of them share. `max_drop`, `verdict`: None where
    nothing is asked of this one.
    """

    items: int
    lost: int
    gained: int
    accuracy_before: float
    accuracy_after: float
    drop: float
    drop_low: float
    drop_high: float
    low_shared: float
    max_drop: float | None = None
    verdict: Verdict | None = None
    items_needed: int | None = None

    def judged(self, max_drop: float | None) -> Drop:
        """The same with its verdict against `max_drop`."""
        verdict = None if max_drop is None else verdict_of(self.low_shared, self.drop_high, max_drop)
        return dataclasses.replace(self, max_drop=max_drop, verdict=verdict)


@dataclasses.dataclass(frozen=True)
class GateResult:
    """The drop from baseline to new on the same items, its interval, and the verdict.

    Of several suites all figures are those of their average, each counting alike, and the numbers of items their sums;
    `mean` holds the average once more, `suites` each of them. `lost`: items worth less than in the baseline, `gained`:
    more. `items_needed`: how many items, in these proportions, would decide if the observed rates held; None when the
    verdict stands, or when a drop lies on what is allowed itself.
    """

    verdict: Verdict
    items: int
    lost: int
    gained: int
    accuracy_before: float
    accuracy_after: float
    drop: float
    drop_low: float
    drop_high: float
    max_drop: float
    confidence: float
    items_needed: int | None = None
    max_drop_each: float | None = None
    suites: dict[str, Drop] = dataclasses.field(default_factory=dict)
    mean: Drop | None = None  # None in what was written before gates had suites

    @property
    def exit_code(self) -> int:
        """0 pass, 3 fail, 5 undecided."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        return dataclasses.asdict(self) | {"exit_code": self.exit_code}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> GateResult:
        """What `to_json` told, whatever stands beside it; raises TypeError when something is missing."""
        names = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in told.items() if key in names}
        suites = {name: Drop(**drop) for name, drop in given.pop("suites", {}).items()}
        mean = given.pop("mean", None)
        return cls(**given, suites=suites, mean=Drop(**mean) if mean else None)

    def sentence(self) -> str:
        """The verdict in words; names the suites that it is about."""
        return sentence(self)


def verdict_of(low: float, high: float, max_drop: float) -> Verdict:
    """Pass where the interval is within what is allowed, fail where it is beyond."""
    if high <= max_drop:
        return "pass"
    return "fail" if low > max_drop else "undecided"
