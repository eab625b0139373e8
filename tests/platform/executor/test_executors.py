from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from megavlm.platform.errors import ConfigError, SavedResumable
from megavlm.platform.executor import EXECUTORS, WORKER, Job, failures, make

# A check that says no: 72 billion parameters on one GPU.
IMPOSSIBLE = ["plan", "nvlm-d-72b", "--gpus", "1", "--gpu", "h100", "--stage", "sft", "--top", "0"]


@pytest.fixture(params=["local", "in_process"])  # on a cluster: tests/slurm/arrays
def executor(request):
    return make(EXECUTORS, request.param, "curation.executor")


def test_results_stand_in_the_order_of_the_tasks(executor, tmp_path):
    tasks = [["--version"], ["recipes", "lst"], IMPOSSIBLE, ["recipes", "list", "--nope"]]
    job = Job("mixed", tasks, tmp_path)
    results = executor.run(job, workers=2)
    assert [result.exit_code for result in results] == [0, 2, 3, 2]
    assert [list(result.task) for result in results] == tasks
    assert results[0].log.read_text().startswith("megavlm ")
    assert "did you mean" in results[1].tail()
    assert "unrecognized arguments" in results[3].tail()
    assert all(result.seconds > 0 for result in results)
    assert failures(results) == results[1:]


def test_who_is_asked_to_stop_begins_no_further_task(executor, tmp_path):
    answers = itertools.chain([False, False], itertools.repeat(True))
    job = Job("stopped", [["--version"]] * 9, tmp_path, stop=lambda: next(answers))
    with pytest.raises(SavedResumable, match="after 2 of 9 tasks"):
        executor.run(job, workers=2)
    assert len(list(tmp_path.glob("*.log"))) == 2


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("local", {"cluster": "x"}, "takes no 'cluster'"),
        ("slurm", {}, "needs a 'cluster'"),
        ("slurm", {"cluster": "nowhere"}, "no cluster profile 'nowhere'"),
    ],
)
def test_options_are_judged_before_anything_runs(name, options, says):
    with pytest.raises(ConfigError, match=says):
        make(EXECUTORS, name, "curation.executor", **options)


def test_an_empty_job_is_done(executor, tmp_path):
    assert executor.run(Job("none", [], tmp_path / "logs"), workers=1) == []


def test_stdout_of_tasks_stays_out_of_the_caller(executor, tmp_path, capfd):
    executor.run(Job("quiet", [["--version"]], tmp_path), workers=1)
    assert "megavlm" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden"])
def test_a_job_name_is_a_file_name(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a job"):
        Job(name, [], tmp_path)


def test_local_needs_a_worker(tmp_path):
    with pytest.raises(ConfigError, match="0 workers"):
        EXECUTORS.load("local")().run(Job("x", [["--version"]], tmp_path), workers=0)


def test_an_unknown_executor_is_told_its_nearest():
    with pytest.raises(ConfigError) as error:
        EXECUTORS.load("locl")
    assert "local" in (error.value.fix or "")


def test_an_exception_of_a_verb_is_its_tasks_failure(tmp_path, monkeypatch):
    from megavlm.platform.verbs import VERBS, Verb

    monkeypatch.setitem(VERBS, "boom", Verb("everyone", "fails", "json:loads"))
    (result,) = EXECUTORS.load("in_process")().run(Job("boom", [["boom"]], tmp_path), workers=0)
    assert result.exit_code == 1 and "Traceback" in result.tail(50)


@pytest.fixture
def telling_verb(tmp_path, monkeypatch):
    """`megavlm tell`, here and in what is started: sends itself USR1, then writes which worker it is."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from megavlm.platform.verbs import VERBS, Verb\n"
        "VERBS['tell'] = Verb('everyone', 'tells', 'sitecustomize:tell')\n"
        "def tell(argv):\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        f"    print('worker', os.environ[{WORKER!r}])\n"
    )
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    return ["tell"]


def test_local_tasks_have_their_workers_number_and_survive_the_drivers_signal(telling_verb, tmp_path):
    results = EXECUTORS.load("local")().run(Job("tell", [telling_verb] * 5, tmp_path / "logs"), workers=2)
    assert not failures(results)
    assert {result.log.read_text().strip() for result in results} == {"worker 0", "worker 1"}


def test_in_process_tasks_have_a_workers_name_for_as_long_as_they_run(tmp_path, monkeypatch):
    from megavlm.platform.verbs import VERBS, Verb

    monkeypatch.delenv(WORKER, raising=False)
    monkeypatch.setitem(VERBS, "name", Verb("everyone", "tells", "os:getenv"))
    seen = []
    monkeypatch.setattr(os, "getenv", lambda argv: seen.append(os.environ[WORKER]))
    EXECUTORS.load("in_process")().run(Job("name", [["name"]], tmp_path), workers=0)
    assert seen == ["0"] and WORKER not in os.environ


@pytest.fixture
def sleeping_job(tmp_path):
    """A process that runs a local job of two tasks which each sleep for a minute, and the file where pids appear."""
    verbs = tmp_path / "sitecustomize.py"
    pids = tmp_path / "pids"
    verbs.write_text(
        "import os, time\n"
        "from megavlm.platform.verbs import VERBS, Verb\n"
        "VERBS['nap'] = Verb('everyone', 'sleeps', 'sitecustomize:nap')\n"
        "def nap(argv):\n"
        f"    with open({str(pids)!r}, 'a') as out: out.write(f'{{os.getpid()}}\\n')\n"
        "    time.sleep(60)\n"
    )
    code = (
        "import sys; from pathlib import Path; from megavlm.platform.executor import EXECUTORS, Job\n"
        "EXECUTORS.load('local')().run(Job('nap', [['nap'], ['nap']], Path(sys.argv[1])), workers=2)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for what they put behind
    )
    yield parent, lambda: [int(line) for line in pids.read_text().split()] if pids.exists() else []
    parent.kill()
    parent.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the kernel's parent-death signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(sleeping_job, number):
    parent, pids = sleeping_job
    _until(lambda: len(pids()) == 2)
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=100)
    _until(lambda: not any(map(_alive, pids())))
    assert parent.returncode != 0
    assert (b"KeyboardInterrupt" in errors) == (number == signal.SIGINT)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)
