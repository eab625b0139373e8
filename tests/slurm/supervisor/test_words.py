"""What Slurm prints, and what it is told: read and written without one."""

from __future__ import annotations

import time

import pytest

from megavlm.slurm.supervisor import allocation, srun
from megavlm.slurm.supervisor.allocation import Allocation
from megavlm.slurm.supervisor.dependency import given_back, handed_on
from megavlm.slurm.supervisor.wish import explain

JOB = """\
JobId=12 JobName=x JobState=RUNNING NodeList=evil PreemptTime=2020-01-01T00:00:00
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=COMPLETING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:04 TimeLimit=1-00:01:00 TimeMin=N/A
   StartTime=2026-11-21T04:57:17 EndTime=2026-11-21T04:57:20 Deadline=N/A
   Partition=low AllocNode:Sid=localhost:1684
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=(null)
   Command=/shared/run JobState=FAILED/jobs/sbatch.sh
"""


def test_a_job_is_read_from_its_own_lines_and_not_from_its_name():
    job = allocation.parse_job(12, JOB)
    started = time.mktime(time.strptime("2026-11-21T04:57:17", "%Y-%m-%dT%H:%M:%S"))
    assert (job.state, job.restarts, job.partition, job.nodes, job.preempted) == ("COMPLETING", 2, "low", (), False)
    assert job.going and job.ends == started + 86460
    assert allocation.parse_job(12, JOB.replace("1-00:01:00", "UNLIMITED")).ends == allocation.FOREVER


@pytest.mark.parametrize(
    ("state", "usable"),
    [("MIXED", True), ("ALLOCATED+DRAIN", False), ("DOWN*", False), ("IDLE*", True), ("MIXED+COMPLETING", True)],
)
def test_a_node_that_an_admin_wants_back_is_not_used(state, usable):
    node = allocation.parse_node(f"NodeName=n1 Arch=x NodeAddr=10.0.0.1 NodeHostName=h1 Version=22 State={state} Foo=1")
    assert (node.name, node.address, node.host, node.usable) == ("n1", "10.0.0.1", "h1", usable)


@pytest.mark.parametrize(
    ("job", "why"),
    [
        ({"state": "RUNNING", "ends": 150}, "time limit"),
        ({"state": "RUNNING", "ends": 5000}, "signal"),
        ({"state": "RUNNING", "ends": 5000, "preempted": True}, "preemption"),
        ({"state": "COMPLETING", "ends": 5000, "preempted": True}, "preemption"),
        ({"state": "COMPLETING", "ends": 99}, "time limit"),
        ({"state": "COMPLETING", "ends": 5000}, "cancel"),
        ({"state": "COMPLETING", "ends": 5000, "restarts": 1}, "requeue"),
        ({"state": "SUSPENDED", "ends": 5000}, "signal"),
    ],
)
def test_why_a_signal_came(job, why):
    facts = {"job_id": 1, "restarts": 0, "nodes": (), "partition": "", "preempted": False, **job}
    assert explain(Allocation(**facts), restarts=0, now=100.0, save_seconds=30.0) == why


@pytest.mark.parametrize(
    ("told", "anew"),
    [
        ("afterok:7(unfulfilled)", "afterok:7?afterok:8"),
        ("afterany:7(unfulfilled)", "afterany:7?afterany:8"),
        ("afterok:6(failed)?afterok:7(unfulfilled)", "afterok:6?afterok:7?afterok:8"),
        ("afterok:7(unfulfilled),afterok:9(unfulfilled)", "afterok:8,afterok:9"),
        ("afterok:7:9", "afterok:8,afterok:9"),
        ("afternotok:7(unfulfilled)", None),
        ("afterok:77(unfulfilled)", None),
        ("afterok:7(unfulfilled)?afterok:8(unfulfilled)", None),
        ("singleton(unfulfilled)", None),
        ("(null)", None),
        ("", None),
    ],
)
def test_who_waits_for_a_job_waits_for_its_successor_too(told, anew):
    assert handed_on(told, me=7, successor=8) == anew


@pytest.mark.parametrize(
    ("told", "anew"),
    [
        ("afterok:8(unfulfilled),afterok:9(unfulfilled)", "afterok:7,afterok:9"),
        ("afterok:7(unfulfilled)?afterok:8(unfulfilled)", None),
        ("afternotok:9", None),
        ("", None),
    ],
)
def test_and_for_the_job_again_when_it_needed_no_successor(told, anew):
    assert given_back(told, me=7, successor=8) == anew


def test_the_words_of_a_step():
    words = srun.attempt_words("attempt-01", ["n1", "n3"], cpus=8)
    assert {"--nodes=2", "--ntasks=2", "--nodelist=n1,n3", "--cpus-per-task=8", "--no-kill"} <= set(words)
    assert "--overlap" in srun.beside_words("probe", ["n1"]) and "--no-kill" not in srun.beside_words("probe", ["n1"])
    assert srun.cpus_per_node({"SLURM_JOB_CPUS_PER_NODE": "72(x2),36"}) == 36 and srun.cpus_per_node({}) is None
    ports = {srun.rendezvous_port(job, attempt) for job in range(40) for attempt in range(1, 30)}
    assert len(ports) > 1000 and all(20000 <= port < 30000 for port in ports)


def test_what_sbatch_leaves_behind_does_not_reach_srun(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "9")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    kept = srun.environment({"MEGAVLM_NODES": "2"})
    assert "SLURM_NTASKS" not in kept and kept["SLURM_JOB_ID"] == "7" and kept["MEGAVLM_NODES"] == "2"
