"""The funnel: what came in, what stayed, what went and why, how long it took, and whether the counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from megavlm.platform.report import Report

from .view import View, share

COLUMNS = ["stage", "in", "kept", "dropped", "kept of in", "seconds of work", "samples/s", "seconds waited"]
REASONS_SHOWN = 30
Line = Mapping[str, Any]


def add_funnel(view: View, report: Report) -> None:
    """The section that every curation has."""
    report.section("Curation", "Every stage's samples in and kept, and the reasons of those that were dropped.")
    if not view.run.folder.finished:
        at = next((line["stage"] for line in reversed(view.lines) if line["done"]), "no stage yet")
        report.text(f"This run is not finished (it has got to: {at}). What is shown is what its ledger calls done.")
    begun = [line for line in view.lines if line["done"]]
    bars = {line["stage"]: {"kept": line["kept"], "dropped": line["in"] - line["kept"]} for line in begun}
    shown = {name: bar for name, bar in bars.items() if bar["dropped"] or view.stages[name].judges}
    report.stacked_bars("Samples kept and dropped by each stage that judges", shown or bars, "samples")
    if reasons := dropped_by_reason(begun):
        more = f" (the {REASONS_SHOWN} most frequent of {len(reasons)})" if len(reasons) > REASONS_SHOWN else ""
        most = dict(reasons.most_common(REASONS_SHOWN))
        report.bar_chart(f"Samples dropped, by stage and reason{more}", most, "samples")
    report.table(rows(view.lines, waited(view)), COLUMNS)
    say_whether_it_adds_up(view, report)
    if view.has("embed") and (facts := view.notes("embed")):
        report.text(f"Features: {facts.get('model')} at {facts.get('image_size')} px. Weights: {facts.get('weights')}.")


def dropped_by_reason(lines: Sequence[Line]) -> Counter[str]:
    """ "stage: reason" -> samples."""
    return Counter({f"{line['stage']}: {reason}": n for line in lines for reason, n in line["dropped"].items()})


def waited(view: View) -> Counter[str]:
    """Seconds by the clock for each stage, over all attempts that had something to do."""
    found: Counter[str] = Counter()
    for entry in view.run.folder.metrics():
        if "stage" in entry and "seconds" in entry:
            found[entry["stage"]] += entry["seconds"]
    return found


def rows(lines: Sequence[Line], clock: Mapping[str, float]) -> list[dict[str, Any]]:
    """The table's rows. `seconds of work` is the sum over workers, which `samples/s` is of as well."""
    return [
        {
            "stage": line["stage"],
            "in": line["in"],
            "kept": line["kept"],
            "dropped": line["in"] - line["kept"],
            "kept of in": share(line["kept"], line["in"]) if line["in"] else None,
            "seconds of work": line["seconds"] if line["done"] else None,
            "samples/s": line["in"] / line["seconds"] if line["seconds"] else None,
            "seconds waited": round(clock[line["stage"]], 2) if line["stage"] in clock else None,
        }
        for line in lines
    ]


def say_whether_it_adds_up(view: View, report: Report) -> None:
    """The check that nothing vanished without a reason."""
    if not view.run.folder.finished:
        report.verdict("Whether the counts add up shows when the run is finished.", None)
        return
    if wrong := problems(view.lines, {stage.name for stage in view.stages if stage.judges}):
        report.verdict("The counts do not add up: " + "; ".join(wrong) + ".", False)
        return
    first, last = view.lines[0]["in"], view.lines[-1]["kept"]
    gone = sum(n for line in view.lines for n in line["dropped"].values())
    report.verdict(f"The counts add up: {first:,} in = {last:,} kept + {gone:,} dropped, each with its reason.", True)


def problems(lines: Sequence[Line], judges: set[str]) -> list[str]:
    """What is wrong with the counts of a finished run: each stage's own, and what one hands on to the next."""
    wrong = []
    left = lines[0]["in"]
    for line in lines:
        gone = sum(line["dropped"].values())
        if line["in"] != line["kept"] + gone:
            wrong.append(f"{line['stage']} got {line['in']:,}, kept {line['kept']:,} and gives reasons for {gone:,}")
        if line["in"] != left:
            wrong.append(f"{line['stage']} got {line['in']:,} of {left:,} that were left")
        left = line["kept"] if line["stage"] in judges or gone else left
    return wrong
