"""What was dropped: examples for every reason, with their pictures where there are any."""

from __future__ import annotations

from megavlm.platform.report import Report

from .pictures import Pictures
from .samples import examples
from .view import View

PICTURES_PER_REASON = 8
FEW = 2
# Told in sections of their own.
ELSEWHERE = ("deduplicate", "decontaminate", "check_captions", "text_decontaminate")
DETAIL = 160  # characters


def add_dropped(view: View, pictures: Pictures, report: Report) -> None:
    """Galleries by stage and reason, and a table of those without a picture: broken files, lost downloads, texts."""
    judges = [stage.name for stage in view.stages if stage.judges and view.has(stage.name)]
    if not judges:
        return
    listed = "each listed in rejected.parquet with its reason" if view.run.folder.finished else "so far"
    total = sum(n for line in view.lines for n in line["dropped"].values())
    report.section("Dropped", f"{total:,} samples, {listed}. Examples are drawn at random.")
    for stage in judges:
        if stage not in ELSEWHERE and view.line(stage)["dropped"]:
            _add_stage(view, stage, pictures, report)


def _add_stage(view: View, stage: str, pictures: Pictures, report: Report) -> None:
    shown, counts = examples(view, stage, PICTURES_PER_REASON), view.line(stage)["dropped"]
    rows = [row for found in shown.values() for row in found]
    found = pictures.encoded((row["shard"], row["key"]) for row in rows) if "ingest" in view.stages.root else {}
    seen: dict[str, list[tuple[bytes, str]]] = {}
    for row in rows:
        if picture := found.get((row["shard"], row["key"])):
            # reasons of one or two pictures share a row of the page
            alone = len(shown[row["reason"]]) > FEW
            text = ": ".join(filter(None, ["" if alone else row["reason"], row["key"], _cut(row["detail"])]))
            seen.setdefault(row["reason"] if alone else "", []).append((picture, text))
    for reason, gallery in sorted(seen.items(), key=lambda item: (item[0] == "", item[0])):
        told = f"{reason}: {counts.get(reason, len(gallery)):,}" if reason else "rare reasons"
        report.gallery(f"{stage}: {told}", gallery, size=96)
    if blind := [row | {"detail": _cut(row["detail"])} for row in rows if (row["shard"], row["key"]) not in found]:
        without = " without a picture" if "ingest" in view.stages.root else ""
        report.table(blind, ["reason", "shard", "key", "detail"], title=f"{stage}: examples{without}")
    if pictures.lost:
        pictures.tell(report, len(rows), len(found))


def _cut(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= DETAIL else text[: DETAIL - 1] + "…"
