"""Who adds what to a run's report. Rooms bring their sections; platform names them as strings and imports on use."""

from __future__ import annotations

import json

from ..config.tree import leaves
from ..registry import Registry
from ..runs import RunFolder
from ..runs.state import describe
from .builder import Report

# Each is a function (run, report) that adds its sections, and nothing when the run has no files of its kind.
REPORT_SECTIONS = Registry(
    "report section",
    {
        "curation": "megavlm.data_curation.report:add_sections",
        "study": "megavlm.megatron_mm.studies.report:add_sections",
        "training": "megavlm.megatron_mm.training.report:add_sections",
        "plan": "megavlm.megatron_mm.planning.report:add_sections",
        "evaluation": "megavlm.megatron_mm.evaluation.report:add_sections",
        "launches": "megavlm.slurm.report:add_sections",
        "run": "megavlm.platform.report.sections:add_run",
    },
)


def add_sections(run: RunFolder, report: Report) -> None:
    """Every registered section, in the order of the table."""
    for name in REPORT_SECTIONS:
        REPORT_SECTIONS.load(name)(run, report)


def add_run(run: RunFolder, report: Report) -> None:
    """The run itself: its state, what it came from, and every value somebody chose."""
    facts = describe(run)
    report.section(f"Run {run.name}", "What was run, on what, and what was set by hand. All other values are defaults.")
    report.figures({"state": facts["state"], "attempts": facts["attempts"]})
    path = run.path("provenance.json")
    if not path.exists():
        return
    origin = json.loads(path.read_text())
    report.table(_provenance_rows(origin), ["what", "value"])
    config = dict(leaves(run.config()))
    chosen = [(key, str(config[key]), where) for key, where in origin["origins"].items() if key in config]
    report.table(chosen, ["key", "value", "set by"], title="Configuration")


def _provenance_rows(origin: dict[str, object]) -> list[tuple[str, str]]:
    """Nested values as dotted rows; the origins have their own table."""
    shown = {key: value for key, value in origin.items() if key != "origins" and value not in ({}, None)}
    return [(key, str(value)) for key, value in leaves(shown)]
