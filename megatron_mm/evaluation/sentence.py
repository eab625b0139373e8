"""A gate's verdict in words. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .gate_result import GateResult


def sentence(gate: GateResult) -> str:
    """One sentence, without a full stop; names the suites that fail, or that are not known to hold."""
    many = len(gate.suites) > 1
    told = {"pass": _passed, "fail": _failed, "undecided": _undecided}[gate.verdict](gate)
    of = f" of {len(gate.suites)} suites" if many else ""
    return f"{told} ({gate.confidence:.0%} interval over {gate.items} paired items{of}{_more(gate)})"


def _passed(gate: GateResult) -> str:
    also = f", and no suite drops beyond {gate.max_drop_each:g}" if gate.max_drop_each is not None else ""
    return f"passed: {_the_drop(gate)} is at most {gate.drop_high:.4f}, within the allowed {gate.max_drop:g}{also}"


def _failed(gate: GateResult) -> str:
    parts = [
        f"{name} drops by at least {drop.low_shared:.4f}, beyond the {drop.max_drop:g} allowed to each suite"
        for name, drop in gate.suites.items()
        if drop.verdict == "fail"
    ]
    low = gate.mean.low_shared if gate.mean else gate.drop_low
    if low > gate.max_drop:
        most = max(gate.suites, key=lambda name: gate.suites[name].drop, default="")
        where = f", most of it in {most} ({gate.suites[most].drop:.4f})" if len(gate.suites) > 1 else ""
        parts.insert(0, f"{_the_drop(gate)} is at least {low:.4f}, beyond the allowed {gate.max_drop:g}{where}")
    return "failed: " + "; ".join(parts)


def _undecided(gate: GateResult) -> str:
    parts = [
        f"{name} drops by up to {drop.drop_high:.4f}, and {drop.max_drop:g} are allowed to each suite"
        for name, drop in gate.suites.items()
        if drop.verdict == "undecided"
    ]
    if gate.drop_high > gate.max_drop:
        between = f"lies between {gate.drop_low:.4f} and {gate.drop_high:.4f}, the allowed {gate.max_drop:g} among them"
        parts.insert(0, f"{_the_drop(gate)} {between}")
    return "undecided: " + "; ".join(parts)


def _the_drop(gate: GateResult) -> str:
    return "the average drop" if len(gate.suites) > 1 else "the drop"


def _more(gate: GateResult) -> str:
    if not gate.items_needed:
        return ""
    times = f", {gate.items_needed / gate.items:.1f} times as many of every suite," if len(gate.suites) > 1 else ""
    return f"; about {gate.items_needed} items{times} would decide at these rates"
