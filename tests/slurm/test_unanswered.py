"""slurmctld does not answer: whoever asks is told so within seconds, and what needs no answer is done."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from megavlm.platform.runs import RunFolder
from megavlm.slurm import cancel, jobs, queue, requeue, status
from megavlm.slurm.chains import chains
from megavlm.slurm.commands import SlurmError

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]


def make(root, name: str) -> RunFolder:
    """A run whose job 1 launched an attempt just now."""
    run = RunFolder(root / name)
    fields = {"cluster": "c", "script": "s", "nodes": 1, "spares": 0, "gpus_per_node": 0, "processes_per_node": 1}
    jobs.add(run, jobs.SubmittedJob(name="sft", job_id=1, command=["train"], after=[], by="submit", **fields))
    event = {"time": time.time(), "kind": "launched", "job": "sft", "job_id": 1, "nodes": ["n1"], "processes": 1}
    folder = run.path("attempts", "01")
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    return run


def test_all_verbs_without_slurmctld(fresh_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path))
    run, other = make(tmp_path, "mini"), make(tmp_path, "other")
    fresh_cluster.kill_controller()
    start = time.monotonic()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(queue.ask, [7])
        one, every = pool.submit(status.one, run), pool.submit(status.every)
        stopped = pool.submit(cancel.cancel, other)
        again = pool.submit(lambda: requeue.plan(run, chains(run)))
        errors = stopped.exception(), again.exception()
    assert time.monotonic() - start < queue.SECONDS + 2
    state = asked.result()[7]
    assert state.state == queue.UNREACHABLE and ("controller" in state.reason or "no answer" in state.reason)
    assert not (state.alive or state.ended)
    assert one.result()["state"] == "running" and one.result()["scheduler"] == state.reason
    assert next(status.table_lines(every.result())).startswith("the scheduler could not be asked: ")
    assert all(isinstance(error, SlurmError) for error in errors)
    assert other.path("cancelled").exists() and "same command again" in errors[0].fix
    fresh_cluster.start_controller()
    end = time.monotonic() + 20
    while queue.ask([7])[7].state != queue.UNKNOWN:
        assert time.monotonic() < end
