"""A run that is really submitted, asked about, cancelled, taken up again and broken: all that people ask of it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from megavlm.platform.runs import RunFolder
from megavlm.slurm import cancel, hours, requeue, status, submit
from megavlm.slurm.follow import follow

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]
KINDS = hours.KINDS


def start(root: Path, name: str, profile: Path, *words: str) -> RunFolder:
    folder = root / name
    command = ["--cluster", str(profile), "--out", str(folder), "--", "steps", str(folder), "--seconds", "0.1", *words]
    assert submit.main(command) == 0
    return RunFolder(folder)


def until(run: RunFolder, true, seconds: float = 60) -> dict:
    end = time.monotonic() + seconds
    while not true(facts := status.one(run)):
        assert time.monotonic() < end, json.dumps(facts, indent=1)
        time.sleep(0.3)
    return facts


def test_it_is_cancelled_taken_up_again_and_ends(cluster, profile, steps_worker, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path))
    run = start(tmp_path, "long", profile(), "--steps", "60", "--save-every", "10", "--start-seconds", "1")
    wrong = start(tmp_path, "wrong", profile(), "--steps", "9", "--fail", "2@3")
    assert status.one(wrong)["state"] in {"queued", "starting", "running"}
    told: list[str] = []
    files = lambda: sorted(run.root.glob("jobs/steps/slurm-*.log"))  # noqa: E731
    reader = threading.Thread(target=lambda: told.extend(follow(files, run, lines=99, merge=True)), daemon=True)
    reader.start()
    facts = until(run, lambda facts: (facts["step"] or 0) >= 5)
    assert facts["state"] == "running" and facts["jobs"][0]["state"] == "RUNNING"
    assert facts["history"][-1]["nodes"] == [facts["jobs"][0]["nodes"]] and facts["hours"]["unit"] == "gpu"
    assert cancel.main(["long"]) == 0
    facts = until(run, lambda facts: facts["state"] == "cancelled" and facts["jobs"][0]["state"] != "COMPLETING")
    assert facts["saved_step"] == facts["step"] and "requeue" in facts["advice"]
    assert facts["history"][-1]["asked"] == "cancel" and facts["hours"]["lost"] == 0
    reader.join(30)  # a cancelled run has nothing more to say
    assert not reader.is_alive() and any("attempt 1: saved" in line for line in told)
    assert requeue.main(["long"]) == 0
    facts = until(run, lambda facts: facts["state"] == "finished")
    assert facts["attempts"] == 2 and facts["step"] == 60
    check_hours(run)
    check_the_one_that_was_wrong(wrong, capsys)


def check_hours(run: RunFolder) -> None:
    """Nothing was done twice; the steps' seconds are there; all of it is the time from launch to judgement."""
    parts = hours.split(run)
    steps = sum(line["seconds"] for line in run.metrics())
    assert sum(part.lost for part in parts.values()) == 0
    assert steps <= sum(part.productive for part in parts.values())
    assert all(part.start_up >= 1 for part in parts.values())
    for attempt in run.attempts():
        events = attempt.events()
        assert parts[attempt.number].wall == pytest.approx(events[-1]["time"] - events[0]["time"], abs=0.01)


def check_the_one_that_was_wrong(run: RunFolder, capsys) -> None:
    facts = until(run, lambda facts: facts["state"] == "failed")
    assert facts["attempts"] == 1 and facts["history"][0]["verdict"] == "user error"
    assert facts["first_error"]["rank"] == 0 and facts["first_error"]["node"] in {"n1", "n2", "n3", "n4"}
    capsys.readouterr()
    assert status.main(["wrong"]) == 0
    out = capsys.readouterr().out
    assert facts["first_error"]["what"] in out and "megavlm logs" in out
