"""The torch-free verb `steps`: it keeps the run folder's contract, so what it shows of the launcher counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from throwaway.daemons import free_ports, wait_for

from megavlm.platform.runs import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(60)]


@pytest.fixture
def start(steps_worker, tmp_path):
    """`start(run, *flags, rank=0, nodes=1, ...) -> Popen` of one node's part."""
    started = []
    port = free_ports(1)[0]

    def begin(run, *flags, rank=0, nodes=1, attempt=None):
        place = {"MEGAVLM_NODES": nodes, "MEGAVLM_NODE_RANK": rank, "MEGAVLM_RENDEZVOUS": f"127.0.0.1:{port}"}
        environment = os.environ | {name: str(value) for name, value in place.items()}
        if attempt is not None:
            (run / "attempts" / attempt).mkdir(parents=True, exist_ok=True)
            environment["MEGAVLM_ATTEMPT"] = str(run / "attempts" / attempt)
        words = [sys.executable, "-m", "megavlm.platform.cli", "steps", str(run), *flags]
        started.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _losses(path):
    return [(line["step"], line["loss"], line["samples"]) for line in RunFolder(path).metrics(unique=("stage", "step"))]


def _wait_for_step(path, step):
    wait_for(lambda: len(RunFolder(path).metrics()) >= step, 20, f"step {step}")


def test_saved_on_request_killed_and_resumed_it_ends_as_if_unbroken(start, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ("--steps", "30", "--seconds", "0.05", "--save-every", "4")
    unbroken, first = start(whole, *flags), start(broken, *flags)
    _wait_for_step(broken, 3)
    RunFolder(broken).attempts()[-1].request_save()
    assert first.wait(20) == 4 and (saved := RunFolder(broken).saved) >= 3
    assert start(broken, *flags, "--fail", f"137@{saved // 4 * 4 + 7}").wait(20) == -9
    assert not RunFolder(broken).finished
    assert start(broken, *flags).wait(20) == 0 == unbroken.wait(20)
    assert RunFolder(broken).finished and _losses(broken) == _losses(whole)
    assert [sample for line in _losses(broken) for sample in line[2]] == list(range(30 * 8))
    assert len(RunFolder(broken).metrics()) > 30  # what came after the last save was done again
    events = [one.events() for one in RunFolder(broken).attempts()]
    kinds = [[event["kind"] for event in told if event["kind"] != "saved"] for told in events]
    assert kinds == [["started", "ended"], ["started"], ["started", "ended"]]


@pytest.mark.parametrize("code", [1, 2, 3])
def test_an_error_is_told_and_gives_its_code(start, tmp_path, code):
    assert start(tmp_path / "run", "--fail", f"{code}@0").wait(20) == code
    failed, ended = RunFolder(tmp_path / "run").attempts()[0].events()[-2:]
    assert (failed["kind"], failed["rank"], failed["exit_code"]) == ("failed", 0, code) and failed["fix"]
    assert (ended["kind"], ended["exit_code"]) == ("ended", code)


def test_a_fault_may_wait_for_an_attempt_or_a_rank(start, tmp_path):
    flags = ("--steps", "2", "--seconds", "0", "--fail", "137@1@2", "--fail", "1@0/1")
    assert start(tmp_path / "run", *flags, attempt="01").wait(20) == 0
    assert start(tmp_path / "other", *flags, attempt="02").wait(20) == -9


def test_a_full_disk_fails_the_save_and_leaves_the_last_one(cluster, start, tmp_path):
    if cluster.small_disk is None:
        pytest.skip("only root has a small disk")
    state = cluster.small_disk / "state"
    run, flags = tmp_path / "run", ("--steps", "9", "--seconds", "0.02", "--save-every", "2", "--save-to", str(state))
    assert start(run, *flags, "--save-bytes", "1000000", "--fail", "137@3").wait(20) == -9
    before = (state / "state.json").read_bytes()
    assert start(run, *flags, "--save-bytes", "9000000").wait(20) == 1
    assert (state / "state.json").read_bytes() == before and len(list(state.iterdir())) == 1
    failed = RunFolder(run).attempts()[-1].events()[-2]
    assert failed["what"] == "cannot save: No space left on device" and failed["where"] == str(state)
    assert start(run, *flags).wait(20) == 0
    (state / "state.json").unlink()


def test_what_a_rank_is_doing_is_told(start, tmp_path):
    run = tmp_path / "run"
    flags = ("--start-seconds", "0.4", "--save-every", "2", "--save-seconds", "0.4", "--evaluate-every", "1")
    process, seen = start(run, "--steps", "3", "--seconds", "0.3", "--evaluate-seconds", "0.3", *flags), []
    while process.poll() is None:
        beats = [beat for attempt in RunFolder(run).attempts() for beat in attempt.heartbeats()]
        if beats and beats[0]["doing"] not in seen[-1:]:
            seen.append(beats[0]["doing"])
        time.sleep(0.02)
    assert process.returncode == 0 and seen[0] == "start" and "step" in seen
    assert (seen.count("start"), seen.count("evaluate"), seen.count("save")) == (1, 3, 2)


def test_two_nodes_step_together_stop_together_and_make_the_chain_of_one(start, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    flags = ("--steps", "20", "--seconds", "0.05", "--save-every", "3")
    one = start(alone, *flags)
    first = [start(both, *flags, rank=rank, nodes=2, attempt="01") for rank in (1, 0)]
    _wait_for_step(both, 4)
    assert [beat["rank"] for beat in RunFolder(both).attempts()[0].heartbeats()] == [0, 1]
    first[0].send_signal(signal.SIGUSR1)  # asking any node is asking all
    assert [process.wait(20) for process in first] == [4, 4] and RunFolder(both).saved
    again = [start(both, *flags, rank=rank, nodes=2, attempt="02") for rank in (0, 1)]
    assert [process.wait(20) for process in [*again, one]] == [0, 0, 0]
    assert _losses(both) == _losses(alone)


def test_who_steps_with_a_stopped_node_waits_and_with_a_dead_one_fails(start, tmp_path):
    run = tmp_path / "run"
    led, other = (start(run, "--seconds", "0.02", "--steps", "9999", rank=r, nodes=2, attempt="01") for r in (0, 1))
    _wait_for_step(run, 3)
    other.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    before = len(RunFolder(run).metrics())
    time.sleep(1)
    assert len(RunFolder(run).metrics()) == before and led.poll() is None
    other.send_signal(signal.SIGCONT)
    _wait_for_step(run, before + 3)
    other.kill()
    assert led.wait(20) == 1
    assert "a node is gone" in RunFolder(run).attempts()[0].events()[-2]["what"]


def test_who_steps_with_a_node_without_power_waits(fresh_cluster, steps_worker):
    if not fresh_cluster.netns:
        pytest.skip("only root can pull the power of a node")
    run = fresh_cluster.shared / "run"
    (run / "attempts" / "01").mkdir(parents=True)
    words = (sys.executable, "-m", "megavlm.platform.cli", "steps", str(run), "--seconds", "0.02", "--steps", "9999")
    place = ("MEGAVLM_NODES=2", "MEGAVLM_RENDEZVOUS=n1:29500", f"MEGAVLM_ATTEMPT={run}/attempts/01")
    ranks = [("env", *place, f"MEGAVLM_NODE_RANK={rank}", *words) for rank in (0, 1)]
    led, other = (subprocess.Popen(fresh_cluster.inside(f"n{i + 1}", *rank)) for i, rank in enumerate(ranks))
    _wait_for_step(run, 3)
    assert [beat["host"] for beat in RunFolder(run).attempts()[0].heartbeats()] == ["n1", "n2"]
    fresh_cluster.kill_node("n2")
    other.wait(20)
    time.sleep(0.5)
    before = len(RunFolder(run).metrics())
    time.sleep(1)
    assert len(RunFolder(run).metrics()) == before and led.poll() is None
    fresh_cluster.exec("n1", "kill", "-9", str(RunFolder(run).attempts()[0].heartbeats()[0]["pid"]))
    led.wait(20)
