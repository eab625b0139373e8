"""The throw-away Slurm: what the other tests rely on happens in it, and nothing of it stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from throwaway.daemons import wait_for

from megavlm.slurm.profile import load_profile

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

SEND = """
import socket, sys, time
data = memoryview(bytes(1 << 16))
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
begun = time.monotonic()
for _ in range(int(sys.argv[3]) >> 16):
    connection.sendall(data)
connection.shutdown(socket.SHUT_WR)
connection.recv(1)  # the other side closes when it has everything
print(time.monotonic() - begun)
"""
RECEIVE = """
import socket
with socket.create_server(("", 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection = server.accept()[0]
    while connection.recv(1 << 16):
        pass
    connection.close()
"""


def test_a_command_runs_on_all_four_nodes(cluster):
    names = cluster.run("srun", "-N4", "sh", "-c", "echo $SLURMD_NODENAME").split()
    assert sorted(names) == cluster.nodes == ["n1", "n2", "n3", "n4"]


def test_a_job_ends_with_the_code_of_its_script(cluster):
    job = cluster.submit(script="echo told; exit 7")
    assert cluster.wait(job, "FAILED")["ExitCode"] == "7:0"
    assert cluster.log(job) == "told\n"


def test_waiting_for_what_cannot_come_says_so_at_once(cluster):
    job = cluster.submit(script="echo why; exit 7")
    with pytest.raises(AssertionError, match="FAILED .* is its end(.|\n)*why"):
        cluster.wait(job, "COMPLETED")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus-per-node=9"], "configuration is not available"),
        (["--partition=nowhere"], "invalid partition"),
        (["--partition=short", "--time=11"], "time limit"),
        (["--array=0-101"], "Invalid job array"),
        (["--container-image=x"], "unrecognized option"),
    ],
)
def test_what_the_cluster_cannot_give_is_refused_at_submit(cluster, options, words):
    with pytest.raises(subprocess.CalledProcessError) as refused:
        cluster.submit(*options, script="true")
    assert words in refused.value.stderr


def test_container_options_reach_the_task(pyxis_cluster):
    options = ("--container-image=registry.example#team/image:1", "--container-writable")
    told = pyxis_cluster.run("srun", *options, "env")
    assert "STANDIN_CONTAINER_IMAGE=registry.example#team/image:1\n" in told
    assert "STANDIN_CONTAINER_WRITABLE=1\n" in told and "STANDIN_CONTAINER_NAME" not in told


def test_accounting_knows_a_job(accounting_cluster):
    job = accounting_cluster.submit(script="exit 3")
    accounting_cluster.wait(job, "FAILED")
    end = time.monotonic() + 20
    while (told := _sacct(accounting_cluster, job)) != "FAILED|3:0" and time.monotonic() < end:
        time.sleep(0.2)  # slurmctld sends what happened now and then
    assert told == "FAILED|3:0"


def _sacct(cluster, job):
    words = ("--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,ExitCode")
    return cluster.run("sacct", *words).strip()


def test_a_job_outlives_the_controller_and_is_requeued_when_its_node_dies(fresh_cluster):
    cluster = fresh_cluster
    job = cluster.submit("-N2", "--exclusive", "--no-requeue", script="sleep 10; echo done")
    script = "echo try $SLURM_RESTART_COUNT; [ $SLURM_RESTART_COUNT ] || sleep 90"
    doomed = cluster.submit("-N2", "--exclusive", "--requeue", script=script)
    for one in (job, doomed):
        cluster.wait(one, "RUNNING")
    cluster.kill_controller()
    assert cluster.attempt("timeout", "2", "squeue").returncode != 0
    cluster.start_controller()
    assert cluster.wait(job, "RUNNING")["Restarts"] == "0" and "done" not in cluster.log(job)
    lost = cluster.job(doomed)["BatchHost"]
    cluster.kill_node(lost)
    cluster.wait(job, "COMPLETED")
    again = cluster.wait(doomed, "COMPLETED", seconds=60)
    assert again["Restarts"] == "1" and again["BatchHost"] != lost
    assert cluster.log(doomed) == "try\ntry 1\n"
    cluster.clear()
    assert cluster.run("srun", "-w", lost, "echo", "back") == "back\n"


@pytest.mark.parametrize("silent", [True, False])
def test_a_dead_node_closes_no_connection_unless_told_to(namespaced, silent):
    listening, port = _listen(namespaced, "n2")
    with socket.create_connection((namespaced.node("n2")["NodeAddr"], port), timeout=2) as connection:
        namespaced.kill_node("n2", silent=silent)
        listening.communicate(timeout=10)
        if silent:
            with pytest.raises(TimeoutError):
                connection.recv(1)
        else:
            assert connection.recv(1) == b""


def test_a_node_has_its_own_name_network_and_processes_and_a_small_disk_that_fills(namespaced):
    assert namespaced.exec("n3", "hostname") == "n3\n"
    assert "throwaway" not in namespaced.exec("n3", "ps", "-e", "-o", "args=").replace("throwaway_", "")
    assert set(os.listdir("/proc")) != set(namespaced.exec("n3", "ls", "/proc").split())
    for name in ("n1", "n4"):
        with pytest.raises(subprocess.CalledProcessError) as full:
            namespaced.exec(name, "dd", "if=/dev/zero", f"of={namespaced.small_disk}/filled", "bs=1M", "count=9")
        assert "No space left on device" in full.value.stderr


def test_a_throttled_node_sends_and_takes_at_that_rate_and_no_other_does(namespaced):
    namespaced.throttle("n2", 40)
    sizes = {("n1", "n2"): 2_000_000, ("n2", "n1"): 2_000_000, ("n3", "n1"): 40_000_000}
    rates = {pair: size * 8e-6 / _seconds(namespaced, *pair, size) for pair, size in sizes.items()}
    assert 25 < rates["n1", "n2"] < 50 and 25 < rates["n2", "n1"] < 50 and rates["n3", "n1"] > 400
    namespaced.unthrottle("n2")
    assert 40_000_000 * 8e-6 / _seconds(namespaced, "n1", "n2", 40_000_000) > 400


@pytest.fixture
def namespaced(fresh_cluster):
    """A fresh cluster whose nodes are machines of their own; only root can have one."""
    return fresh_cluster if fresh_cluster.netns else pytest.skip("needs root")


def _listen(cluster, node):
    """A process on a node that takes one connection and reads it to its end, and its port."""
    words = cluster.inside(node, sys.executable, "-c", RECEIVE)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def _seconds(cluster, source, target, size):
    process, port = _listen(cluster, target)
    told = cluster.exec(source, sys.executable, "-c", SEND, cluster.node(target)["NodeAddr"], str(port), str(size))
    process.communicate(timeout=10)
    return float(told)


def test_a_cluster_is_cleared_for_the_next_test(fresh_cluster):
    for _ in range(3):
        fresh_cluster.submit("--exclusive", "-N2", script="trap '' TERM; sleep 99")
    for name, state in (("n1", "drain"), ("n2", "down")):
        fresh_cluster.run("scontrol", "update", f"nodename={name}", f"state={state}", "reason=test")
    fresh_cluster.kill_node("n3")
    fresh_cluster.clear()
    assert fresh_cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING") == ""
    assert fresh_cluster.run("srun", "-N4", "echo", "here") == "here\n" * 4


def test_nothing_stays_when_the_tests_are_killed(tmp_path):
    """A cluster of a process that gets kill -9 goes down all the same: its daemons, its network and its folder."""
    folder, marks = Path(tempfile.mkdtemp(prefix="slurm-")), tmp_path / "up"
    code = "import sys, time; from pathlib import Path; from throwaway.cluster import Cluster; "
    code += "Cluster(Path(sys.argv[1])).up(); Path(sys.argv[2]).touch(); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    tests = subprocess.Popen([sys.executable, "-c", code, folder, marks], env=environment)
    wait_for(marks.exists, 20, "the cluster")
    daemons = [int(path.read_text().split()[0]) for path in (folder / "pid").iterdir()]
    assert len(daemons) >= 6
    tests.kill()
    tests.wait()
    wait_for(
        lambda: not folder.exists() and not any(Path(f"/proc/{pid}/root").exists() for pid in daemons), 20, "the end"
    )


def test_a_person_gets_a_cluster_from_the_shell_and_can_take_it_down(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    command = [sys.executable, Path(__file__).parent / "throwaway"]
    up = subprocess.run([*command, "up", "--nodes", "2", "--dir", folder], capture_output=True, text=True, timeout=60)
    try:
        assert up.stdout == f"export SLURM_CONF={folder}/slurm.conf\n"
        nodes = subprocess.run(
            ["bash", "-c", f"{up.stdout} srun -N2 true && sinfo -hN"], capture_output=True, text=True
        )
        assert {line.split()[0] for line in nodes.stdout.splitlines()} == {"n1", "n2"}
    finally:
        subprocess.run([*command, "down", "--dir", folder], check=True, timeout=60)
    assert not folder.exists()


def test_a_profile_is_one_that_the_project_reads(profile):
    one = load_profile(str(profile(partition="low", hang={"seconds": 3})))
    assert (one.partition, one.hang.seconds, one.hang.other_seconds) == ("low", 3, 30)
