"""Where a run's hours went: known cases, and that nothing is counted twice or forgotten, whatever the clocks say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.platform.runs import RunFolder
from megavlm.slurm.hours import KINDS, Split, account, hours, split


def write(run: RunFolder, number: int, events: list[dict], lines: list[dict]) -> None:
    folder = run.path("attempts", f"{number:02d}")
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for line in lines:
        run.append_metrics({"attempt": number, "loss": 1.0, **line})


def launched(time: float, gpus: int = 16) -> dict:
    fields = {"job": "sft", "job_id": 1, "restart": 0, "nodes": ["n1", "n2"], "spares": []}
    return {"time": time, "kind": "launched", "gpus": gpus, "processes": gpus or 2, **fields}


def step(number: int, time: float, seconds: float, stage: str = "sft") -> dict:
    return {"stage": stage, "step": number, "time": time, "seconds": seconds, "waited": 0.0}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "mini", {"name": "mini"}, {}, [])


def told(one: Split) -> list[float]:
    return [getattr(one, kind) for kind in KINDS]


def test_a_hang_loses_the_repeated_steps_and_the_silence(run):
    events = [
        launched(0), {"time": 5, "kind": "started"},
        {"time": 52, "kind": "saved", "stage": "sft", "step": 2, "seconds": 2},
        {"time": 130, "kind": "hang"}, {"time": 140, "kind": "judged", "verdict": "hang", "action": "retry"},
    ]  # fmt: skip
    write(run, 1, events, [step(1, 40, 10), step(2, 50, 10), step(3, 62, 10)])
    again = [launched(200), {"time": 261, "kind": "saved", "stage": "sft", "step": 4, "seconds": 1}]
    ended = [{"time": 281, "kind": "ended", "exit_code": 0}, {"time": 285, "kind": "judged", "verdict": "done"}]
    write(run, 2, [*again, *ended], [step(3, 250, 10), step(4, 260, 10)])
    first, second = split(run).values()
    assert told(first) == [20, 30, 2, 10 + 78]  # step 3 was done again; then nothing came
    assert told(second) == [20 + 24, 40, 1, 0]  # the evaluation after the last step is work
    assert hours(run) == {
        "unit": "gpu", "productive": round(64 * 16 / 3600, 6), "start_up": round(70 * 16 / 3600, 6),
        "saving": round(3 * 16 / 3600, 6), "lost": round(88 * 16 / 3600, 6), "total": 1.0,
    }  # fmt: skip


def test_what_lies_between_two_steps_belongs_to_the_next(run):
    saved = {"time": 24, "kind": "saved", "stage": "a", "step": 1, "seconds": 2}
    end = {"time": 100, "kind": "ended", "exit_code": 4}
    write(run, 1, [launched(0, gpus=0), saved, end], [step(1, 20, 5, "a"), step(1, 60, 5, "b"), step(2, 70, 5, "b")])
    only = split(run)[1]
    assert told(only) == [5 + 48, 15, 2 + 30, 0]  # 2 s of 20..24 and all of 24..60 are of stage b's first step
    assert (only.devices, only.unit, hours(run)["unit"]) == (2, "process", "process")


@pytest.mark.parametrize(
    ("code", "kind"), [(0, "productive"), (3, "productive"), (5, "productive"), (4, "saving"), (1, "lost"), (2, "lost")]
)
def test_an_attempt_without_a_step_is_what_its_end_says(run, code, kind):
    write(run, 1, [launched(0), {"time": 30, "kind": "ended", "exit_code": code}], [])
    assert getattr(split(run)[1], kind) == 30 == split(run)[1].wall


def test_one_that_goes_on_counts_up_to_now_and_one_that_is_dead_does_not(run):
    write(run, 1, [launched(1000)], [])
    assert told(split(run, now=1020)[1]) == [0, 20, 0, 0]
    run.append_metrics({"attempt": 1, **step(1, 1100, 10)})
    assert told(split(run, now=1150)[1]) == [60, 90, 0, 0]
    assert told(split(run, now=9000)[1]) == [10, 90, 0, 0]


def test_what_a_dead_attempt_did_after_its_last_step_is_lost(run):
    write(run, 1, [launched(1000)], [step(1, 1100, 10)])
    beat = {"rank": 0, "step": 1, "time": 1130, "doing": "step", "pid": 1, "host": "n1"}
    run.path("attempts", "01", "heartbeat").mkdir()
    run.path("attempts", "01", "heartbeat", "rank-00000").write_text(json.dumps(beat))
    assert told(split(run, now=1150)[1]) == [60, 90, 0, 0]
    assert told(split(run, now=9000)[1]) == [10, 90, 0, 30]


def test_the_wait_for_the_next_job_is_not_held_against_the_attempt_that_it_judges(run):
    judged = {"time": 90_000, "kind": "judged", "verdict": "lost", "action": "leave"}
    write(run, 1, [launched(0), judged], [step(1, 40, 10)])
    assert told(split(run, now=90_010)[1]) == [10, 30, 0, 0]


def test_a_run_without_attempts_or_with_lines_of_old_has_no_hours(run):
    assert hours(run)["total"] == 0
    run.append_metrics({"stage": "sft", "step": 1, "seconds": 3.0})
    assert hours(run)["total"] == 0


moments = st.integers(-20, 130)
lengths = st.integers(-5, 60)
steps = st.lists(st.tuples(st.tuples(moments, lengths), st.booleans()), max_size=12)
saves = st.lists(st.tuples(moments, lengths), max_size=5)
endings = st.sampled_from([[], [{"kind": "ended", "exit_code": 1}], [{"kind": "hang"}], [{"kind": "judged"}]])


@given(steps, saves, endings, st.booleans())
def test_the_kinds_add_up_to_the_wall_time_whatever_was_written(lines, saved, ending, goes_on):
    records = [({"time": time, "seconds": seconds}, counts) for (time, seconds), counts in lines]
    events = [{"kind": "saved", "time": time, "seconds": seconds} for time, seconds in saved]
    out = account(Split(), 0, 100, records, [*events, *({"time": 100, **event} for event in ending)], goes_on)
    assert min(told(out)) >= 0
    assert sum(told(out)) == 100 == out.wall


@given(st.lists(st.tuples(st.sampled_from(["step", "again", "save", "idle"]), st.integers(1, 9)), max_size=20))
def test_the_split_is_that_of_a_timeline_painted_second_by_second(spans):
    """Spans one after another: an independent account of each, where idle time belongs to the step that follows."""
    painted, owed, stepped, at = dict.fromkeys(KINDS, 0), 0, False, 0
    records, events = [], []
    for what, seconds in spans:
        at += seconds
        if what in {"step", "again"}:
            kind = "productive" if what == "step" else "lost"
            records.append(({"time": at, "seconds": seconds}, what == "step"))
            painted[kind if stepped else "start_up"] += owed
            painted[kind] += seconds
            owed, stepped = 0, True
        elif what == "save":
            events.append({"kind": "saved", "time": at, "seconds": seconds})
            painted["saving"] += seconds
        else:
            owed += seconds
    painted["lost"] += owed
    out = account(Split(), 0, at, records, [*events, {"kind": "ended", "time": at, "exit_code": 1}], False)
    assert {kind: getattr(out, kind) for kind in KINDS} == painted
