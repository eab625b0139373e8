"""`megavlm compare A B C`: the scores of several models on the suites they share, paired with the first. No torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.cli import parser
from megavlm.platform.errors import ConfigError

from .compare import Comparison, Difference, compare
from .compare_page import page
from .found import predictions_folder

EPILOG = """\
each of them is RUN:STAGE, a stage's folder of predictions in a run, or any folder with SUITE.jsonl and SUITE.about.json

examples:
  megavlm compare nvlm-d-mini:language nvlm-d-mini:sft nvlm-d-mini:control
  megavlm compare runs/base:sft runs/more-text:sft --suites mmlu gsm8k --html compared.html
"""
MARKS = {"better": "+ better", "worse": "- worse", "unclear": "no clear change"}


def main(argv: Sequence[str]) -> int:
    """Compare and tell; returns 0 whoever is better."""
    args = _arguments(argv)
    told = compare(_folders(args.models), args.suites, args.confidence)
    if args.html:
        written = page(told).write(args.html)
        print(f"written: {written}", file=sys.stderr)
    print(json.dumps(told.to_json(), indent=2) if args.json else readable(told))
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = parser("compare", epilog=EPILOG)
    p.add_argument("models", metavar="RUN:STAGE|FOLDER", nargs="+", help="two and more; the first is the reference")
    p.add_argument("--suites", nargs="+", default=[], metavar="SUITE", help="only these (default: all there are)")
    p.add_argument("--confidence", type=float, default=0.95, help="of every interval (default: 0.95)")
    p.add_argument("--html", type=Path, metavar="FILE", help="also as a page, with the items that changed sides")
    args = p.parse_args(argv)
    if len(args.models) < 2:
        raise ConfigError("one model has nothing to be compared with", fix="name two or more, the reference first")
    if not 0.5 <= args.confidence < 1:
        raise ConfigError(f"confidence {args.confidence} is not in [0.5, 1)", where="--confidence", fix="0.95 is usual")
    return args


def _folders(words: Sequence[str]) -> dict[str, Path]:
    folders = {word: predictions_folder(word) for word in words}
    if len(folders) < len(words):
        raise ConfigError("a model is named twice", where=" ".join(words), fix="name each once")
    return folders


def readable(told: Comparison) -> str:
    """A table per suite and one on the average; differences in points."""
    lines = [f"reference: {told.names[0]}; differences in points, with their {told.confidence:.0%} interval"]
    for name, suite in told.suites.items():
        lines += ["", f"{name}: {suite.metric}, {suite.items} items"]
        lines += _rows(told.names, suite.reference, suite.others)
    averaged = told.averaged
    if len(told.suites) > 1 and averaged:
        lines += ["", f"average of {len(averaged)} suites: {', '.join(averaged)}"]
        lines += _rows(told.names, told.reference_mean, told.mean)
    elif not averaged:
        lines += ["", "no average: there is no suite that all of them have"]
    return "\n".join(lines)


def _rows(names: Sequence[str], reference: float | None, others: dict[str, Difference]) -> list[str]:
    width = max(map(len, names))
    lines = [f"  {names[0]:<{width}}  " + ("missing" if reference is None else f"{100 * reference:6.2f}")]
    for name in names[1:]:
        if name in others:
            lines.append(f"  {name:<{width}}  {_row(others[name])}")
        else:
            lines.append(f"  {name:<{width}}  " + ("missing" if reference is not None else "nothing to compare with"))
    return lines


def _row(of: Difference) -> str:
    ends = f"[{100 * of.low:+.2f}, {100 * of.high:+.2f}]"
    items = f"{of.lost} lost, {of.gained} gained"
    return f"{100 * of.score:6.2f}  {100 * of.difference:+6.2f} {ends:<18} {items:<26} {MARKS[of.change]}"
