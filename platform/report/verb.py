"""`megavlm report RUN`: one self-contained HTML file from what the run folder holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..cli import parser
from ..runs import find_run
from .builder import Report
from .sections import add_sections


def main(argv: Sequence[str]) -> int:
    """Write the report and say where it is."""
    p = parser("report", epilog="example: megavlm report runs/nvlm-d-mini")
    p.add_argument("run", help="a run folder, or a run's name under $MEGAVLM_RUNS (default ./runs)")
    p.add_argument("--out", type=Path, help="default: report.html in the run folder")
    args = p.parse_args(argv)
    run = find_run(args.run)
    report = Report(run.name, "MegaVLM run report")
    add_sections(run, report)
    path = report.write(args.out or run.path("report.html"))
    sections = [section.title for section in report.sections if section.title]
    print(json.dumps({"report": str(path), "sections": sections}) if args.json else path)
    return 0
