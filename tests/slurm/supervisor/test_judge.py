"""From traces to classes."""

from __future__ import annotations

import pytest

from megavlm.slurm.supervisor.judge import Facts, has_room, in_words, judge
from megavlm.slurm.supervisor.policy import Verdict
from megavlm.slurm.supervisor.watch import Silence

STARTED = {"kind": "started", "time": 1.0}
SAVED = {"kind": "saved", "time": 2.0, "stage": "sft", "step": 40}


def ended(code, **fields):
    return {"kind": "ended", "time": 9.0, "exit_code": code, **fields}


def failed(what, time=3.0, rank=0, **fields):
    return {"kind": "failed", "time": time, "rank": rank, "what": what, "where": "here", "fix": "mend it", **fields}


@pytest.mark.parametrize(
    ("code", "events", "verdict", "exit_code"),
    [
        (0, [STARTED, ended(0)], Verdict.FINISHED, 0),
        (0, [], Verdict.FINISHED, 0),
        (0, [STARTED, SAVED], Verdict.CRASH, 143),  # srun's word for a step that was cut off together with it
        (3, [STARTED, ended(0)], Verdict.REFUSED, 3),  # the gate said no after the attempt had ended well
        (5, [STARTED, ended(0)], Verdict.REFUSED, 5),
        (137, [STARTED, ended(0)], Verdict.FINISHED, 0),  # another node died after the leader's last word
        (2, [], Verdict.USER_ERROR, 2),
        (1, [STARTED, ended(2)], Verdict.USER_ERROR, 2),
        (137, [STARTED, SAVED, ended(4)], Verdict.SAVED, 4),
        (1, [STARTED, ended(1)], Verdict.CRASH, 1),
        (137, [STARTED], Verdict.CRASH, 137),
        (1, [STARTED, failed("cannot save: No space left on device"), ended(1)], Verdict.NO_SPACE, 1),
        (2, [STARTED, failed("[Errno 122] Disk quota exceeded"), ended(2)], Verdict.NO_SPACE, 2),
        (1, [STARTED, ended(1, error="OSError: [Errno 28] No space left on device")], Verdict.NO_SPACE, 1),
    ],
)
def test_the_verbs_own_word_comes_first(code, events, verdict, exit_code):
    ending = judge(Facts(code=code, events=events))
    assert (ending.verdict, ending.code) == (verdict, exit_code)


@pytest.mark.parametrize(
    "log",
    [
        "srun: forcing job termination\nsrun: Job step aborted: Waiting up to 5 seconds for job step to finish.\n",
        "0: working\nslurmstepd-n1: error: *** STEP 2.0 ON n1 CANCELLED AT 2026-11-21T05:52:47 DUE TO TIME LIMIT ***\n",
    ],
)
def test_a_verb_that_tells_nothing_is_not_finished_because_srun_was_ended_with_it(log):
    assert judge(Facts(code=0, events=[], log=log)).verdict == Verdict.CRASH
    labelled = "".join(f"0: {line}\n" for line in log.splitlines())
    assert judge(Facts(code=0, events=[], log=labelled)).verdict == Verdict.FINISHED


def test_a_dead_node_explains_a_crash_and_a_silence_but_not_an_end():
    silence = Silence(step=7, seconds=61.0, ranks=(0, 1))
    dead = judge(Facts(code=137, events=[STARTED], dead=("n2",), silence=silence))
    assert (dead.verdict, dead.bad, dead.suspects) == (Verdict.NODE_FAILURE, ("n2",), ())
    assert judge(Facts(code=0, events=[STARTED, ended(0)], dead=("n2",))).verdict == Verdict.FINISHED
    assert judge(Facts(code=0, events=[], dead=("n2",))).verdict == Verdict.NODE_FAILURE


def test_a_hang_names_its_suspects():
    stopped = {"rank": 1, "node": "n2", "why": "stopped"}
    silence = Silence(step=7, seconds=61.0, ranks=(0, 1))
    ending = judge(Facts(code=137, events=[STARTED, SAVED], silence=silence, suspects=[stopped]))
    assert (ending.verdict, ending.suspects, ending.progress) == (Verdict.HANG, ("n2",), True)
    assert ending.reason == "at step 7, silent for 61 s; suspected: rank 1 on n2 (stopped)"
    nowhere = [{"rank": rank, "node": None, "why": "stopped"} for rank in range(9)]
    many = judge(Facts(code=137, events=[STARTED], silence=silence, suspects=nowhere))
    assert many.suspects == () and many.reason.endswith("rank 3 on an unknown node (stopped), 5 more")


def test_a_save_on_request_counts_however_the_attempt_ended_after_it():
    assert judge(Facts(code=137, events=[STARTED, SAVED], saved=40)).verdict == Verdict.SAVED
    assert judge(Facts(code=137, events=[STARTED, SAVED], saved=39)).verdict == Verdict.CRASH  # another job's
    assert judge(Facts(code=137, events=[STARTED], saved=40)).verdict == Verdict.CRASH


def test_the_reason_is_what_failed_first():
    events = [failed("a node is gone", time=5.0), failed("loss is not finite", time=4.0, rank=3), ended(1)]
    assert judge(Facts(code=1, events=events)).reason == "loss is not finite; here; mend it"
    log = "0: Killed by the kernel\nsrun: error: n1: task 0: Killed\n"
    assert judge(Facts(code=137, events=[], log=log)).reason == f"{in_words(137)}; 0: Killed by the kernel"
    assert in_words(137) == "exit code 137 (SIGKILL, perhaps out of memory)" and in_words(200) == "exit code 200"
    refused = judge(Facts(code=1, events=[], refused="no job step starts"))
    assert (refused.verdict, refused.reason) == (Verdict.NOT_STARTED, "no job step starts")


def test_a_full_disk_shows_by_a_probe_alone(tmp_path):
    assert has_room(tmp_path) and list(tmp_path.iterdir()) == []
    assert not has_room(tmp_path / "missing")
    full = judge(Facts(code=1, events=[STARTED], room=False))
    assert full.verdict == Verdict.NO_SPACE and "free space" in full.reason
