"""The section on a run's launches in its report."""

from __future__ import annotations

import json
import re

from megavlm.platform.report.builder import Report
from megavlm.platform.runs import RunFolder
from megavlm.slurm import jobs
from megavlm.slurm.report import add_sections


def make(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "mini", {"name": "mini"}, {}, ["megavlm"])


def attempt(run: RunFolder, number: int, *events: dict) -> None:
    folder = run.path("attempts", f"{number:02d}")
    folder.mkdir(parents=True)
    launched = {"kind": "launched", "time": 0, "job": "sft", "job_id": 7, "restart": 0, "nodes": ["n1", "n2"]}
    lines = [launched | {"gpus": 16, "processes": 16, "spares": ["n3"]}, *events]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_each_attempt_has_a_row_with_its_end_and_its_hours(tmp_path):
    run, report = make(tmp_path), Report("mini")
    fields = {"cluster": "c", "script": "s", "nodes": 2, "spares": 1, "gpus_per_node": 8, "processes_per_node": 8}
    jobs.add(run, jobs.SubmittedJob(name="sft", job_id=7, command=[], after=[], by="submit", **fields))
    judged = {"kind": "judged", "action": "retry", "exclude": ["n2"], "exit_code": 1}
    attempt(run, 1, judged | {"time": 900, "verdict": "node failure", "reason": "no answer from <n2>"})
    attempt(run, 2, {"kind": "ended", "time": 1818, "exit_code": 0})
    add_sections(run, report)
    text = report.write(tmp_path / "report.html").read_text()
    assert re.search(r"<td[^>]*>\s*8\.08\s*</td>", text)  # 1818 s of 16 GPUs
    for told in ("Launches", "GPU-hours", "node failure", "no answer from &lt;n2&gt;", "2 + 1", "67%", "attempt 2"):
        assert told in text


def test_a_run_that_slurm_never_saw_has_no_such_section(tmp_path):
    run, report = make(tmp_path), Report("mini")
    attempt(run, 1)
    add_sections(run, report)
    assert [section.title for section in report.sections] == [""]
