"""What watchers saw, for people: words behind a step's line, and the report's chapter. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...config import Stage
from .base import labels

if TYPE_CHECKING:
    from megavlm.platform.report import Report
    from megavlm.platform.runs import RunFolder

Events = list[dict[str, Any]]

MOST_ROWS = 50
ENDS = {"drop_low": "least", "drop_high": "most"}  # of a figure's interval, where it has one
INTRO = (
    "What looked at the model between two steps. Drift is KL(baseline || model) in nats a token over the answers of "
    "some texts, by the baseline's likeliest tokens and one bucket for all others: a lower bound of the whole "
    "divergence. A gate's drop is the loss of accuracy against its baseline, item by item, with its interval."
)


def watched_words(told: Mapping[str, Any], stage: Stage) -> str:
    """`gate drop 0.0210, drift kl 0.1300`: the main figures in a step's line; "" where nobody looked."""
    found = []
    for label, watcher in zip(labels(stage.watch), stage.watch, strict=True):
        figure = told.get(f"{label.replace('-', '_')}_{watcher.figure}")
        if figure is not None:
            found.append(f"{label} {watcher.figure} {figure:.4f}")
    return ", ".join(found)


def add_watched(run: RunFolder, report: Report) -> None:
    """Each watcher's figure over the steps with its threshold, all looks, and what ended a stage."""
    looks = _looks(run)
    if not looks:
        return
    report.section("While it trained: drift and the gate", INTRO)
    for stage, label in dict.fromkeys((event["stage"], event["watcher"]) for event in looks):
        _add_chart(stage, label, [e for e in looks if (e["stage"], e["watcher"]) == (stage, label)], report)
    columns = ["stage", "step", "watcher", "verdict", "sentence", "seconds"]
    report.table(looks[-MOST_ROWS:], columns, title="Looks")
    for event in looks:
        if event["acts"] and event["verdict"] == "fail":
            words = f"Stage {event['stage']} was ended after step {event['step']} by the watcher '{event['watcher']}'"
            report.verdict(f"{words}: {event['sentence']}.", False)


def _looks(run: RunFolder) -> Events:
    """Of all attempts; of a step that was repeated the last. Those of steps that count no more say why they do not."""
    events = [event for attempt in run.attempts() for event in attempt.events() if event["kind"] == "watch"]
    return list({(event["stage"], event["watcher"], event["step"]): event for event in events}.values())


def _add_chart(stage: str, label: str, looks: Sequence[Mapping[str, Any]], report: Report) -> None:
    figure = looks[-1]["figure"]
    series = {figure: _curve(looks, figure)}
    series |= {f"{end} ({figure})": _curve(looks, key) for key, end in ENDS.items() if key in looks[-1]}
    marks = {f"allowed: {most:g}": most for most in looks[-1]["limits"].values()}
    report.line_chart(f"{stage}, {label}: {figure} over the steps", series, "step", marks=marks)


def _curve(looks: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return sorted((look["step"], look[key]) for look in looks)
