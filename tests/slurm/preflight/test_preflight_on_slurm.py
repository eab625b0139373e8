"""The check on a real Slurm of four nodes, one of which has a slow network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]
MBIT, SLOW_MBIT = 200, 40  # low enough that the network is the limit, not the two cores that all nodes share
MAIN = "import sys; from megavlm.slurm.preflight.verb import main; sys.exit(main(sys.argv[1:]))"


def preflight(cluster, profile, *words):
    """Exit code and --json answer of one command."""
    path = profile(environment={"GLOO_SOCKET_IFNAME": "eth0"} if cluster.netns else {}, preflight={"seconds": 100})
    command = [sys.executable, "-c", MAIN, "--cluster", str(path), "--out", str(cluster.shared), "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def even_network(cluster) -> Iterator[None]:
    """Every node's network limited alike."""
    if not cluster.netns:
        pytest.skip("tc needs root")
    cluster.wait_idle()
    for node in cluster.nodes:
        cluster.throttle(node, MBIT)
    yield
    for node in cluster.nodes:
        cluster.unthrottle(node)


def test_nobody_is_named_when_all_are_well_and_exactly_the_culprit_otherwise(cluster, profile, even_network):
    code, told = preflight(cluster, profile)
    assert (code, told["bad"], told["ok"]) == (0, {}, True)
    assert [row["node"] for row in told["nodes"]] == cluster.nodes and all(row["answered"] for row in told["nodes"])
    assert MBIT / 3 < told["median"]["network"] * 8e-6 < 1.5 * MBIT
    cluster.throttle("n3", SLOW_MBIT)
    code, told = preflight(cluster, profile)
    assert code == 3 and list(told["bad"]) == ["n3"]
    assert "network" in told["bad"]["n3"] and "Mbit/s" in told["bad"]["n3"]


@pytest.mark.multiprocess
def test_the_full_check_finds_it_by_all_reduce(cluster, profile, even_network):
    cluster.throttle("n2", SLOW_MBIT)
    code, told = preflight(cluster, profile, "--kind", "full")
    assert code == 3 and list(told["bad"]) == ["n2"]
    assert "all-reduce" in told["bad"]["n2"] and told["median"]["matmul"] > 0


def test_inside_a_job_its_own_nodes_are_checked(cluster, profile):
    path, out = profile(preflight={"seconds": 60}), cluster.shared / "inside"
    words = f"{sys.executable} -c '{MAIN}' --cluster {path} --out {out} --json > {out}.json"
    job = cluster.submit("--nodes=2", "--wait-all-nodes=1", script=words)
    cluster.wait(job, "COMPLETED", seconds=60)
    told = json.loads((cluster.shared / "inside.json").read_text())
    assert told["ok"] and len(told["nodes"]) == 2


def test_nodes_may_be_chosen_by_slurm(cluster, profile):
    cluster.wait_idle()
    code, told = preflight(cluster, profile, "--nodes", "3")
    assert len(told["nodes"]) == 3 and code == 0, told["bad"]


def test_a_partition_that_is_not_there_has_no_idle_node(cluster, profile):
    command = [sys.executable, "-c", MAIN, "--cluster", str(profile()), "--out", str(cluster.shared)]
    done = subprocess.run([*command, "--partition", "nosuch"], capture_output=True, text=True, timeout=60)
    assert done.returncode and "no node of nosuch is idle" in done.stderr
