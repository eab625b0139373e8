"""Whose caption counts: the new one where the recipe has a recaption stage, otherwise the one that came along."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..run import CurationRun

RECAPTION, INGEST = "recaption", "ingest"


def caption_source(run: CurationRun, stage: str) -> str:
    """Whose sidecar's `caption` counts when `stage` reads: "recaption" when that comes before it, else "ingest"."""
    names = list(run.config.stages.root)
    return RECAPTION if RECAPTION in names[: names.index(stage)] else INGEST
