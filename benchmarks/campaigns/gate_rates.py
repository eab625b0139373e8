"""Campaign: how often does the gate fail what is allowed, and pass what is not, when the truth is known?

`make campaign NAME=gate_rates` takes some minutes; the result is gate_rates.md beside this file. On the allowed drop
itself a gate of 95 % should fail 2.5 % of the trials and pass as many, or less where few items differ, since then few
outcomes are possible. Exits with 3 when it does either more often than LIMIT anywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gate_trials import METHODS, Truth, right_or_wrong, score, shares, uncorrected

from megavlm.megatron_mm.evaluation.average import mean_interval, shared_confidence

TRIALS, SEED, CONFIDENCE = 10_000, 20261121, 0.95
RESAMPLED_TRIALS = 2_000
LIMIT = 0.025 + 3 * (0.025 * 0.975 / TRIALS) ** 0.5  # three standard errors
SIZES = (50, 164, 500, 1319, 5000, 14042)
CORRELATIONS = (0.0, 0.5, 0.8, 0.95)
DROPS = (0.01, 0.02)
BENCHMARKS = {"mmlu": (14042, 0.823), "gsm8k": (1319, 0.911), "math": (5000, 0.597), "humaneval": (164, 0.860)}
SPREADS = {  # of an average drop of 1 over the four
    "alike": (1.0, 1.0, 1.0, 1.0),
    "in MATH alone": (0.0, 0.0, 4.0, 0.0),
    "in HumanEval alone": (0.0, 0.0, 0.0, 4.0),
    "MMLU falls, MATH rises": (6.0, 0.0, -2.0, 0.0),
}
RESULT = Path(__file__).with_suffix(".md")
SHOWS = """
On the allowed drop the gate errs as often as it says, each way, and less often where so few items differ that few
outcomes are possible. There Tango's interval as published, and the same for shares, fail more often than they say;
Student's t, Wald and the bootstrap pass many models that they should not, since they collapse where nothing differs;
the empirical Bernstein bound never errs and decides nothing. It does not show what happens where items depend on each
other, such as many questions about one picture: then every one of these intervals is too narrow.
"""


class Row(NamedTuple):
    """A case: what it is, the shares of trials that failed and passed, and whether they are bounded."""

    told: str
    failed: float
    passed: float
    bounded: bool = False

    @property
    def held(self) -> bool:
        return not self.bounded or max(self.failed, self.passed) <= LIMIT

    def line(self) -> str:
        return f"| {self.told} | {100 * self.failed:.2f} | {100 * self.passed:.2f} |" + ("" if self.held else " beyond")


def one_suite(rng: np.random.Generator) -> Iterator[Row]:
    """Right or wrong, the truth on the allowed drop."""
    for items in SIZES:
        for drop in DROPS:
            for correlation in CORRELATIONS:
                truth = right_or_wrong(0.8, drop, correlation)
                differ = items * float(truth.shares[0] + truth.shares[2])
                told = f"{items} | {100 * drop:g} | {correlation:g} | {differ:.1f}"
                yield rate(told, truth, items, drop, rng, bounded=True)


def without(rng: np.random.Generator) -> Iterator[Row]:
    """The same by Tango's interval as published, where few items differ."""
    for items in SIZES:
        for drop in DROPS:
            truth = right_or_wrong(0.8, drop, 0.95)
            low, high = uncorrected(truth.drops, truth.draw(items, TRIALS, rng), CONFIDENCE)
            yield Row(f"{items} | {100 * drop:g} | 0.95", *judged(low, high, drop))


def beyond(rng: np.random.Generator) -> Iterator[Row]:
    """Right or wrong, one point allowed, and truths on both sides of it."""
    for items in (164, 1319, 14042):
        for drop in (-0.02, 0.0, 0.02, 0.03, 0.05):
            truth = right_or_wrong(0.8, drop, 0.8)
            yield rate(f"{items} | {100 * drop:g}", truth, items, 0.01, rng)


def of_shares(rng: np.random.Generator) -> Iterator[Row]:
    """Metrics with shares, the truth on the allowed drop."""
    for metric in ("VQA accuracy", "ANLS"):
        for items in SIZES[:-1]:
            for changed in (0.02, 0.1, 0.3):
                truth = shares(metric, 0.02, changed)
                differ = items * float(1 - truth.shares[truth.drops == 0].sum())
                told = f"{metric} | {items} | {changed:g} | {differ:.1f}"
                yield rate(told, truth, items, 0.02, rng, bounded=True)


def candidates(rng: np.random.Generator) -> Iterator[Row]:
    """The same for every interval that was tried."""
    for metric, items, changed in (
        ("ANLS", 50, 0.1),
        ("ANLS", 164, 0.1),
        ("VQA accuracy", 50, 0.02),
        ("ANLS", 500, 0.02),
    ):
        truth = shares(metric, 0.02, changed)
        for name, method in METHODS.items():
            counts = truth.draw(items, RESAMPLED_TRIALS if name == "bootstrap-t" else TRIALS, rng)
            low, high = method(truth.drops, counts, CONFIDENCE)
            yield Row(f"{metric} | {items} | {changed:g} | {name}", *judged(low, high, 0.02))
    counts = np.array([[0, 164, 0]])
    for name, method in METHODS.items():
        low, high = method(np.array([1.0, 0.0, -1.0]), counts, CONFIDENCE)
        print(f"nothing differs of 164: {name} [{low[0]:.4f}, {high[0]:.4f}]")


def averages(rng: np.random.Generator) -> Iterator[Row]:
    """Four benchmarks at their real sizes, one point allowed on average and the truth on it."""
    for correlation in (0.5, 0.8):
        for told, spread in SPREADS.items():
            suites = drawn([0.01 * part for part in spread], correlation, rng)
            low, high = mean_interval(*of_each(suites, CONFIDENCE, alone=False))
            yield Row(f"{correlation:g} | {told}", *judged(low, high, 0.01), bounded=True)


def families(rng: np.random.Generator) -> Iterator[Row]:
    """Two points allowed on average and to each: all suites on it, one on it, one beyond."""
    cases = {
        "all on the limit": (0.02, 0.02, 0.02, 0.02),
        "GSM8K on the limit, the others unchanged": (0.0, 0.02, 0.0, 0.0),
        "MATH 5 points down, the others unchanged": (0.0, 0.0, 0.05, 0.0),
    }
    for told, drops in cases.items():
        suites = drawn(drops, 0.8, rng)
        shared = shared_confidence(CONFIDENCE, len(suites) + 1)
        (_, lows, _), (_, _, highs) = (of_each(suites, level) for level in (shared, CONFIDENCE))
        low, _ = mean_interval(*of_each(suites, shared, alone=False))
        _, high = mean_interval(*of_each(suites, CONFIDENCE, alone=False))
        failed = (low > 0.02) | (lows > 0.02).any(0)
        passed = (high <= 0.02) & (highs <= 0.02).all(0)
        yield Row(told, float(failed.mean()), float(passed.mean()), bounded="on the limit" in told)


def drawn(
    drops: list[float] | tuple[float, ...], correlation: float, rng: np.random.Generator
) -> list[tuple[Truth, np.ndarray]]:
    truths = [
        right_or_wrong(right, drop, correlation) for drop, (_, right) in zip(drops, BENCHMARKS.values(), strict=True)
    ]
    return [(truth, truth.draw(n, TRIALS, rng)) for truth, (n, _) in zip(truths, BENCHMARKS.values(), strict=True)]


def of_each(
    suites: list[tuple[Truth, np.ndarray]], confidence: float, alone: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observed drops and both ends, each [suites, trials]."""
    ends = [score(truth.drops, counts, confidence, alone) for truth, counts in suites]
    observed = np.array([counts @ truth.drops / counts.sum(1) for truth, counts in suites])
    return observed, np.array([low for low, _ in ends]), np.array([high for _, high in ends])


def rate(told: str, truth: Truth, items: int, allowed: float, rng: np.random.Generator, bounded: bool = False) -> Row:
    low, high = score(truth.drops, truth.draw(items, TRIALS, rng), CONFIDENCE)
    return Row(told, *judged(low, high, allowed), bounded)


def judged(low: np.ndarray, high: np.ndarray, allowed: float) -> tuple[float, float]:
    """Shares of trials that fail and pass."""
    return float((low > allowed + 1e-12).mean()), float((high <= allowed).mean())


SECTIONS = {
    "One suite of right and wrong, the truth on the allowed drop": (
        one_suite, "items | drop allowed, points | correlation | items expected to differ",
    ),
    "The same by Tango's interval as published, without the corrections": (
        without, "items | drop allowed, points | correlation",
    ),
    "One suite, one point allowed, other truths": (beyond, "items | true drop, points"),
    "Shares, the truth on the two points allowed": (of_shares, "metric | items | answers changed | expected to differ"),
    "Intervals tried for shares": (candidates, "metric | items | answers changed | interval"),
    "Average of MMLU, GSM8K, MATH, HumanEval, the truth on the one point allowed": (
        averages, "correlation | the drop is",
    ),
    "Two points allowed on average and to each": (families, "the truth"),
}  # fmt: skip


def table(title: str, rows: list[Row], columns: str) -> list[str]:
    head = f"| {columns} | fails, % | passes, % |"
    return ["", f"### {title}", "", head, "|---" * (head.count("|") - 1) + "|", *(row.line() for row in rows)]


def main() -> int:
    """Measure, write the tables, compare with LIMIT."""
    started = time.monotonic()
    found = {title: list(make(np.random.default_rng(SEED))) for title, (make, _) in SECTIONS.items()}
    broken = [row for rows in found.values() for row in rows if not row.held]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# How often the gate is wrong",
        "",
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=gate_rates`",
        f"- seed: {SEED}; {TRIALS:,} trials a row ({RESAMPLED_TRIALS:,} with bootstrap-t)",
        f"- machine: {os.cpu_count()} cores, no GPU",
        f"- versions: numpy {version('numpy')}, scipy {version('scipy')}",
        f"- wall time: {time.monotonic() - started:.0f} s",
        f"- bound, where the truth is on what is allowed: {100 * LIMIT:.2f} %, 2.50 and three standard errors:"
        f" {'NOT HELD' if broken else 'held'}",
        *(line for title, rows in found.items() for line in table(title, rows, SECTIONS[title][1])),
    ]
    lines += SHOWS.rstrip().splitlines()
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 3 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
