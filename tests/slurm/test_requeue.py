"""`requeue` on a real Slurm: what is left goes back, in order, and nothing that lives or is finished does."""

from __future__ import annotations

import json
import time

import pytest

from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder
from megavlm.slurm import jobs, queue, requeue, status
from megavlm.slurm.chains import submitted
from megavlm.slurm.commands import SlurmError


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path))
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "config.yaml").write_text("name: mini\n")
    return RunFolder.open(tmp_path / "mini")


def stage(
    cluster, run, name: str, body: str, after: tuple[int, ...] = (), *options: str, by: jobs.By = "submit"
) -> int:
    """A job of the run with its stored script, as `submit` leaves it."""
    folder = jobs.folder(run, name)
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / jobs.SCRIPT
    script.write_text(f"#!/bin/bash\n#SBATCH --output={folder / jobs.LOG}\n{body}\n")
    waits = [f"--dependency={','.join(f'afterok:{job_id}' for job_id in after)}", "--kill-on-invalid-dep=yes"]
    job_id = int(cluster.run("sbatch", "--parsable", *(waits if after else []), str(script)))
    fields = {"cluster": "c", "nodes": 1, "spares": 0, "gpus_per_node": 0, "processes_per_node": 1}
    fields |= {"script": str(script), "command": ["train", "x", f"--stage={name}"]}
    jobs.add(run, jobs.SubmittedJob(name, job_id, after=list(after), by=by, **fields))
    return job_id


def told(capsys, *arguments: str) -> list[dict]:
    assert requeue.main(["mini", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["jobs"]


def wait_until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


class TestOnSlurm:
    pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

    def test_what_is_left_goes_back_in_order_and_what_is_done_does_not(self, cluster, run, capsys):
        done = stage(cluster, run, "align", "true")
        failing = f"[ -e {run.root}/mended ]"
        failed = stage(cluster, run, "pretrain", failing, (done,))
        dropped = stage(cluster, run, "sft", "sleep 100", (done, failed))
        cluster.wait(failed, "FAILED")
        cluster.wait(dropped, "CANCELLED")
        run.path("cancelled").write_text("{}")
        would = told(capsys, "--dry-run")
        assert [(job["name"], job["job_id"], job["after"]) for job in would] == [
            ("pretrain", None, ["align"]), ("sft", None, ["align", "pretrain"]),
        ]  # fmt: skip
        assert run.path("cancelled").exists() and len(jobs.history(run)) == 3
        with pytest.raises(InputError, match="has no job 'stf'") as unknown:
            requeue.main(["mini", "--stage", "stf"])
        assert unknown.value.fix == "did you mean 'sft'?"
        run.path("mended").touch()
        first, second = told(capsys)
        assert not run.path("cancelled").exists()
        assert (first["after"], second["after"]) == ([], [first["job_id"]])
        assert [job.by for job in submitted(run)["sft"]] == ["requeue"]
        cluster.wait(first["job_id"], "COMPLETED")
        cluster.wait(second["job_id"], "RUNNING")
        with pytest.raises(InputError, match=rf"job {second['job_id']} \(sft\) is running") as refused:
            requeue.main(["mini"])
        assert "megavlm cancel" in refused.value.fix
        with pytest.raises(InputError, match="is finished: pretrain"):
            requeue.main(["mini", "--stage", "pretrain"])
        cluster.run("scancel", str(second["job_id"]))
        cluster.wait(second["job_id"], "CANCELLED")
        again = told(capsys, "--stage", "sft")
        assert [(job["name"], job["was"]) for job in again] == [("sft", second["job_id"])]
        cluster.clear()

    def test_a_chain_of_successors_is_one_job_that_starts_anew(self, cluster, run, capsys):
        first = stage(cluster, run, "sft", "exit 1")
        last = stage(cluster, run, "sft", "exit 1", by="successor")
        other = cluster.submit(script="sleep 30")
        waiting = stage(cluster, run, "next", "true", (first, other))
        for job_id in (first, last):
            cluster.wait(job_id, "FAILED")
        cluster.wait(waiting, "CANCELLED")
        sent = told(capsys)
        assert [job["name"] for job in sent] == ["sft", "next"]
        assert sent[1]["after"] == [sent[0]["job_id"], other]  # another run's job that still lives
        assert [job.job_id for job in submitted(run)["sft"]] == [sent[0]["job_id"]]
        cluster.clear()

    def test_when_slurm_refuses_one_none_is_left_and_the_run_stays_cancelled(self, cluster, run):
        first, second = stage(cluster, run, "a", "exit 1"), stage(cluster, run, "b", "exit 1")
        cluster.wait(second, "FAILED")
        cluster.wait(first, "FAILED")
        jobs.folder(run, "b").joinpath(jobs.SCRIPT).write_text("#!/bin/bash\n#SBATCH --partition=none\ntrue\n")
        run.path("cancelled").write_text("{}")
        with pytest.raises(SlurmError, match="invalid partition"):
            requeue.main(["mini"])
        assert run.path("cancelled").exists()
        wait_until(lambda: not queue.ask([submitted(run)["a"][0].job_id])[submitted(run)["a"][0].job_id].alive)
        assert status.one(run)["state"] == "cancelled"
        cluster.clear()


def test_a_run_that_was_never_submitted_is_refused_and_so_is_one_that_nobody_can_tell_of(run, monkeypatch):
    with pytest.raises(InputError, match="never submitted"):
        requeue.main(["mini"])
    fields = {"cluster": "c", "nodes": 1, "spares": 0, "gpus_per_node": 0, "processes_per_node": 1}
    jobs.add(run, jobs.SubmittedJob("sft", 7, script="gone", command=["train"], after=[], by="submit", **fields))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SlurmError, match="nobody can tell"):
        requeue.main(["mini"])
