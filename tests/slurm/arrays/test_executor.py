"""Commands on a real Slurm: each done once, whatever befalls the workers, the nodes, the controller or the driver."""

from __future__ import annotations

import threading

import pytest

from megavlm.platform.errors import ConfigError, SavedResumable
from megavlm.platform.executor import EXECUTORS, Job, failures, make
from megavlm.slurm.arrays.executor import SlurmArrayExecutor
from megavlm.slurm.arrays.submission import most_tasks, submit
from megavlm.slurm.arrays.watcher import SqueueWatcher
from megavlm.slurm.commands import SlurmError
from megavlm.slurm.profile import load_profile

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(150)]


def running(cluster) -> list[tuple[str, str]]:
    """(task, node) of every running task of an array."""
    lines = cluster.run("squeue", "--array", "--noheader", "--states=RUNNING", "-o", "%i %N").splitlines()
    return [(line.split()[0], line.split()[1]) for line in lines]


def test_good_failing_and_deadly_commands(cluster, profile, chores, tools, tmp_path):
    names = [f"c{number}" for number in range(20)]
    commands = [chores(name) for name in names]
    commands[7], commands[11] = chores("c7", "fail"), chores("c11", "die")
    job = Job("mixed", commands, tmp_path / "it's logs")
    results = make(EXECUTORS, "slurm", "here", cluster=str(profile())).run(job, workers=3)
    assert [list(result.task) for result in results] == commands
    assert [index for index, result in enumerate(results) if not result.ok] == [7, 11]
    assert "chore c7 cannot be done" in results[7].tail() and results[7].exit_code == 2
    assert "the worker that ran this is gone: job" in results[11].tail()
    begun, done = tools.told(tmp_path, "begun"), tools.told(tmp_path, "done")
    assert begun == {name: 3 if name in {"c7", "c11"} else 1 for name in names}
    assert done == {name: 1 for name in names if name not in {"c7", "c11"}}
    assert sorted(path.name for path in job.logs.glob("*.log")) == ["mixed-00007.log", "mixed-00011.log"]
    written = [path for path in job.logs.rglob("*") if path.is_file()]
    assert not [path for path in written if b"hush" in path.read_bytes()], "a secret of the shell"
    tools.until(lambda: not cluster.run("squeue", "--noheader").strip())


def test_work_is_taken_up(fresh_cluster, profile, chores, tools, tmp_path):
    """The controller is away at first; then a worker is killed, another cancelled, and the node of others dies."""
    cluster, names = fresh_cluster, [f"c{number}" for number in range(24)]
    job = Job("broken", [chores(name, seconds=1) for name in names], tmp_path / "logs")
    found = []
    executor = SlurmArrayExecutor(str(profile(limits={"array_tasks": 6}, cpus_per_task=4)))  # two to a node
    cluster.kill_controller()
    thread = threading.Thread(target=lambda: found.extend(executor.run(job, workers=500)), daemon=True)
    thread.start()
    watcher = SqueueWatcher()
    assert not watcher.is_done("1"), "nobody could be asked"
    cluster.start_controller()
    tools.until(lambda: len(tools.told(tmp_path, "begun")) >= 6)
    (killed, _), (cancelled, first), *others = running(cluster)
    node = next(node for _, node in others if node != first)
    cluster.run("scancel", "--signal=KILL", killed)
    cluster.run("scancel", cancelled)
    cluster.kill_node(node)
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")
    thread.join(60)
    assert len(found) == 24 and not failures(found)
    assert tools.told(tmp_path, "done") == {name: 1 for name in names}, "what was done is never done again"
    assert 0 < tools.told(tmp_path, "begun").total() - 24 <= 6
    assert watcher.is_done("12345"), "Slurm knows no such job, and so it has ended"


def test_who_is_asked_to_stop_leaves_no_array_behind(cluster, profile, chores, tools, tmp_path):
    begun = lambda: bool(tools.told(tmp_path, "begun"))  # noqa: E731
    job = Job("stopped", [chores(f"c{n}", seconds=60) for n in range(4)], tmp_path / "logs", stop=begun)
    with pytest.raises(SavedResumable, match="after 0 of 4 tasks"):
        SlurmArrayExecutor(str(profile())).run(job, workers=2)
    tools.until(lambda: not cluster.run("squeue", "--noheader").strip(), seconds=10)


def test_an_array_has_as_many_tasks_as_slurm_takes(cluster, profile, tmp_path):
    held = load_profile(str(profile(sbatch={"hold": True})))
    most = most_tasks()
    assert most == 100
    ids = submit(held, "held", tmp_path / "fits", most)
    assert len(ids) == most
    cluster.run("scancel", ids[0].split("_")[0])
    with pytest.raises(SlurmError, match="Invalid job array"):
        submit(held, "held", tmp_path / "too-many", most + 2)


def test_workers_that_cannot_start_are_said(cluster, profile, chores, tmp_path):
    executor = SlurmArrayExecutor(str(profile(setup=["echo 'module: command not found' >&2; exit 1"])))
    job = Job("none", [chores("c0")], tmp_path / "logs")
    with pytest.raises(Exception, match="command not found"):
        executor.run(job, workers=2)


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a:b"])
def test_a_folder_that_slurm_misreads_is_refused(profile, tmp_path, name):
    with pytest.raises(ConfigError):
        SlurmArrayExecutor(str(profile())).run(Job("x", [["--version"]], tmp_path / name), workers=1)
