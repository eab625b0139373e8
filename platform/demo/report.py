"""The demo's report: what the run's rooms have to show, behind a first page of figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report import Report, add_sections
from ..runs import RunFolder

INTRO = (
    "Photographs that ship with scikit-image and scikit-learn were cut up, salted with near-duplicates and broken "
    "files, curated, turned into questions, and used to train a small NVLM-D on megatron-core. "
    "Nothing is pretrained: the curation's EVA-02 features come from random weights, and encoder and language model "
    "start from random numbers and learn in this run."
)
HEADLINES = {
    "images curated": ("curation", "images"),
    "kept": ("curation", "kept"),
    "duplicate recall": ("curation", "duplicate_recall"),
    "duplicate precision": ("curation", "duplicate_precision"),
    "visual accuracy": ("evaluation", "vl_accuracy"),
    "visual chance": ("evaluation", "vl_chance"),
    "text before": ("evaluation", "text_accuracy_before"),
    "text after": ("evaluation", "text_accuracy_after"),
}


def write_report(out: Path, data: Path, told: dict[str, Any]) -> Path:
    """report.html in `out`, one self-contained file."""
    report = Report("MegaVLM demo", "photographs in, a measured vision-language model out")
    report.section("What happened", INTRO)
    report.figures({label: _short(told[part][key]) for label, (part, key) in HEADLINES.items()})
    add_rows(report, told)
    for run in (data / "curation", out / "train"):
        add_sections(RunFolder.open(run), report)
    return report.write(out / "report.html")


def _short(value: int | float) -> int | str:
    return value if isinstance(value, int) else f"{value:.3f}"


def add_rows(report: Report, told: dict[str, Any]) -> None:
    """The planted samples and what became of them, and accuracy against its controls."""
    kinds = told["curation"]["recall_by_kind"]
    report.bar_chart("Planted near-duplicates found, by kind", kinds)
    named = told["curation"]["planted_bad_files_named"]
    report.table(
        [[kind, "yes" if yes else "no"] for kind, yes in named.items()], ["planted bad file", "named with its reason"]
    )
    scores = told["evaluation"]
    bars = {"model": scores["vl_accuracy"], "images exchanged": scores["vl_blind"]}
    report.bar_chart("Visual questions on held-out pictures", bars, marks={"best constant answer": scores["vl_chance"]})
    texts = {"before": "text_accuracy_before", "after": "text_accuracy_after"}
    bars = {label: scores[key] for label, key in texts.items()}
    bars["after, without text in the blend"] = scores["control_text_accuracy_after"]
    report.bar_chart("Text exercises on held-out items", bars, marks={"best constant answer": scores["text_chance"]})
