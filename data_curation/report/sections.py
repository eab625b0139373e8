"""Which sections a curation's report has, and in which order."""

from __future__ import annotations

from megavlm.platform.report import Report
from megavlm.platform.runs import RunFolder

from ..run import CurationRun
from .captions import add_captions
from .clusters import add_clusters
from .distributions import add_distributions
from .dropped import add_dropped
from .duplicates import add_duplicates
from .funnel import add_funnel
from .leaks import add_leaks
from .links import add_links
from .pictures import Pictures
from .text import add_text
from .view import View

# Each adds nothing to a run that has nothing of its kind.
SECTIONS = (
    add_distributions,
    add_links,
    add_text,
    add_clusters,
    add_duplicates,
    add_leaks,
    add_captions,
    add_dropped,
)


def add_sections(run: RunFolder, report: Report) -> None:
    """Add the curation's sections, of an unfinished run as far as it got; nothing to a run that curates nothing."""
    if "curation" not in run.config() or not run.path("ledger", "shards.json").exists():
        return
    view = View.of(CurationRun.open(run.root))
    add_funnel(view, report)
    pictures = Pictures(view)
    for add in SECTIONS:
        add(view, pictures, report)
