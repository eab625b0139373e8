"""The paired gate: does a later stage still answer what an earlier one did? Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from megavlm.platform.errors import ConfigError, InputError

from .intervals import tango_interval
from .predictions import Prediction, accuracy

Verdict = Literal["pass", "fail", "undecided"]
EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 3, "undecided": 5}
MOST_ITEMS = 1_000_000_000  # beyond this the honest answer is that items alone decide nothing


@dataclasses.dataclass(frozen=True)
class GateResult:
    """The drop in accuracy from baseline to new on the same items, its interval, and the verdict.

    `lost`: items right in the baseline and wrong now; `gained`: the reverse. `items_needed`: how many items would
    decide if the observed rates held; None when the verdict stands, or when the drop lies on max_drop itself.
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
        return cls(**{key: value for key, value in told.items() if key in names})

    def sentence(self) -> str:
        """The verdict in words."""
        said = {
            "pass": f"passed: the drop is at most {self.drop_high:.4f}, within the allowed {self.max_drop:g}",
            "fail": f"failed: the drop is at least {self.drop_low:.4f}, beyond the allowed {self.max_drop:g}",
            "undecided": f"undecided: the drop lies between {self.drop_low:.4f} and {self.drop_high:.4f}, "
            f"the allowed {self.max_drop:g} among them",
        }[self.verdict]
        more = f"; about {self.items_needed} items would decide at these rates" if self.items_needed else ""
        return f"{said} ({self.confidence:.0%} interval over {self.items} paired items{more})"


def paired_gate(
    baseline: Sequence[Prediction], new: Sequence[Prediction], *, max_drop: float, confidence: float = 0.95
) -> GateResult:
    """Compare two sets of predictions item by item.

    Pass when the upper end of the drop's two-sided interval (Tango 1998) is <= max_drop, fail when its lower end is
    > max_drop, undecided between. Raises InputError when the two are not about the same items, ConfigError on limits
    that are no fractions.
    """
    _check_limits(max_drop, confidence)
    pairs = _paired(baseline, new)
    lost = sum(before.correct and not after.correct for before, after in pairs)
    gained = sum(after.correct and not before.correct for before, after in pairs)
    low, high = tango_interval(lost, gained, len(pairs), confidence)
    verdict = _verdict(low, high, max_drop)
    return GateResult(
        verdict=verdict,
        items=len(pairs),
        lost=lost,
        gained=gained,
        accuracy_before=accuracy(baseline),
        accuracy_after=accuracy(new),
        drop=(lost - gained) / len(pairs),
        drop_low=low,
        drop_high=high,
        max_drop=max_drop,
        confidence=confidence,
        items_needed=None
        if verdict != "undecided"
        else items_to_decide(lost, gained, len(pairs), max_drop, confidence),
    )


def items_to_decide(lost: int, gained: int, items: int, max_drop: float, confidence: float) -> int | None:
    """Smallest number of items that decides when lost and gained keep their shares; None when none does."""

    def decided(count: int) -> bool:
        scale = count / items
        low, high = tango_interval(lost * scale, gained * scale, count, confidence)
        return _verdict(low, high, max_drop) != "undecided"

    enough = max(items, 1)
    while not decided(enough):
        if enough > MOST_ITEMS:
            return None
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if decided(middle) else (middle, enough)
    return enough


def _verdict(low: float, high: float, max_drop: float) -> Verdict:
    if high <= max_drop:
        return "pass"
    return "fail" if low > max_drop else "undecided"


def _check_limits(max_drop: float, confidence: float) -> None:
    if not 0 <= max_drop < 1:
        raise ConfigError(
            f"max_drop {max_drop} is no fraction", where="max_drop", fix="0.02 tolerates two points of accuracy"
        )
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence {confidence} is not in [0.5, 1)", where="confidence", fix="0.95 is usual")


def _paired(baseline: Sequence[Prediction], new: Sequence[Prediction]) -> list[tuple[Prediction, Prediction]]:
    before, after = _by_id(baseline, "baseline"), _by_id(new, "new")
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise InputError(
            f"{len(odd)} items are in only one of the two sets of predictions, such as '{odd[0]}'",
            where=f"baseline has {len(before)} items, new has {len(after)}",
            fix="evaluate both stages on the same held-out set",
        )
    if not before:
        raise InputError("no items to compare", fix="name a held-out set with samples in it")
    pairs = [(before[key], after[key]) for key in sorted(before)]
    for old, now in pairs:
        if old.expected != now.expected:
            raise InputError(
                f"item '{old.id}' expects '{old.expected}' in the baseline and '{now.expected}' now",
                fix="the held-out set changed between the two evaluations: evaluate both again with --fresh",
            )
    return pairs


def _by_id(predictions: Sequence[Prediction], which: str) -> dict[str, Prediction]:
    table: dict[str, Prediction] = {}
    for item in predictions:
        if item.id in table:
            raise InputError(
                f"item '{item.id}' is given twice", where=f"{which} predictions", fix="ids of a set must be unique"
            )
        table[item.id] = item
    return table
