"""The ledger against a plain dictionary: whatever workers and drivers do, and wherever they are killed."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation import ledger as module
from megavlm.data_curation.ledger import Ledger, Line, later
from megavlm.data_curation.stages.base import Outcome
from megavlm.platform.errors import ConfigError

STAGE = "filter"
OUTCOME = Outcome(3, 2, {"too_small": 1}, {"note": {"nested": {}}})
TASKS, WORKERS = range(3), range(3)


class Killed(Exception):
    """The process is gone at this point."""


@contextmanager
def named(worker: object) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEGAVLM_WORKER", str(worker))
        yield


@contextmanager
def disturbed(at: int, what) -> Iterator[None]:
    """`what` happens just before the file operation number `at` of the ledger."""
    count = itertools.count()

    def watch(operation):
        def watched(*args, **kwargs):
            if next(count) == at:
                what()
            return operation(*args, **kwargs)

        return watched

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "unlink"):
            patch.setattr(Path, name, watch(getattr(Path, name)))
        patch.setattr(module, "write_atomic", watch(module.write_atomic))
        yield


def killed() -> None:
    raise Killed


def mark(ledger: Ledger, task: int, fingerprint: str, worker: object = 0) -> None:
    """A worker does a task from beginning to end."""
    with named(worker):
        last = ledger.withdraw(STAGE, ledger.state(STAGE).get(task, Line(task)))
        ledger.mark(STAGE, last, fingerprint, OUTCOME, 0.5)


def worker(ledger: Ledger, task: int, fingerprint: str, outputs: dict[int, list[str]]) -> Iterator[None]:
    """What `work` does with one task, with a halt wherever a kill would matter; a task has two output files."""
    last = ledger.state(STAGE, {task: None}).get(task, Line(task))
    yield
    if last.fingerprint == fingerprint:
        return
    last = ledger.withdraw(STAGE, last)
    yield
    for file in range(2):
        outputs[task][file] = fingerprint
        yield
    ledger.mark(STAGE, last, fingerprint, OUTCOME, 0.5)


steps = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from(WORKERS), st.sampled_from(TASKS)),
    st.tuples(st.just("step"), st.sampled_from(WORKERS), st.integers(1, 5)),
    st.tuples(st.just("kill"), st.sampled_from(WORKERS), st.none()),
    st.tuples(st.just("configure"), st.sampled_from("abc"), st.none()),
    st.tuples(st.just("compact"), st.integers(0, 9), st.none()),  # and be killed at that operation
)


@settings(max_examples=300)
@given(st.lists(steps, max_size=40))
def test_what_is_called_done_is_whole(script):
    """Workers of one configuration in any interleaving, on the same tasks even; a new one comes when they are dead."""
    outputs = {task: ["", ""] for task in TASKS}
    alive: dict[int, Iterator[None]] = {}
    now = "a"
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder))
        for kind, what, how in script:
            if kind == "begin":
                alive[what] = worker(ledger, how, now, outputs)
            elif kind == "step" and what in alive:
                with named(what):
                    for _ in range(how):
                        next(alive[what], None)
            elif kind == "kill":
                alive.pop(what, None)
            elif kind == "configure":
                alive, now = {}, what
            elif kind == "compact":
                with suppress(Killed), disturbed(what, killed):
                    ledger.compact(STAGE)
            for fingerprint in "abc":
                for task in ledger.done(STAGE, dict.fromkeys(TASKS, fingerprint)):
                    assert outputs[task] == [fingerprint] * 2
        for task in TASKS:  # and whatever happened, the work can be brought to its end
            for _ in worker(ledger, task, now, outputs):
                pass
        ledger.compact(STAGE)
        assert ledger.done(STAGE, dict.fromkeys(TASKS, now)) == set(TASKS)
        assert not ledger.parts(STAGE)


changes = st.tuples(st.sampled_from(["mark", "withdraw", "compact", "killed"]), st.sampled_from(TASKS),
                    st.sampled_from("ab"), st.sampled_from(WORKERS), st.integers(0, 9))  # fmt: skip


@settings(max_examples=200)
@given(st.lists(changes, max_size=30))
def test_it_agrees_with_a_dictionary(script):
    model: dict[int, str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder))
        for kind, task, fingerprint, who, at in script:
            if kind == "mark":
                mark(ledger, task, fingerprint, who)
                model[task] = fingerprint
            elif kind == "withdraw" and task in model:
                with named(who):
                    ledger.withdraw(STAGE, ledger.state(STAGE)[task])
                model[task] = None
            elif kind == "compact":
                ledger.compact(STAGE)
            elif kind == "killed":
                with suppress(Killed), disturbed(at, killed):
                    ledger.compact(STAGE)
            assert {task: line.fingerprint for task, line in ledger.state(STAGE).items()} == model


lines = st.builds(
    Line, st.just(0), st.integers(1, 3), st.sampled_from(["a", "b", None]), st.sampled_from([b"{}", b"1"])
)


@given(st.lists(lines, min_size=1, max_size=5), st.randoms())
def test_the_order_in_which_files_are_read_does_not_matter(words, random):
    mixed = [*words, random.choice(words)]  # a line may also stand in two files
    random.shuffle(mixed)
    assert reduce(later, mixed) == reduce(later, words)


def test_two_workers_that_did_a_task_for_different_things_have_not_done_it(tmp_path):
    ledger = Ledger(tmp_path)
    for who, fingerprint in enumerate("ab"):
        with named(who):
            ledger.mark(STAGE, Line(0), fingerprint, OUTCOME, 0.0)
    assert ledger.state(STAGE)[0].fingerprint is None
    mark(ledger, 0, "b")
    assert ledger.done(STAGE, {0: "b"}) == {0}


@pytest.mark.parametrize("at", range(7))  # remove the summary; rename two parts; replace all.jsonl (two); remove two
def test_a_mark_made_while_the_driver_merges_is_not_lost(tmp_path, at):
    ledger = Ledger(tmp_path)
    for task in range(4):
        mark(ledger, task, "a", task % 2)
    with disturbed(at, lambda: mark(ledger, 7, "a", 1)):
        ledger.compact(STAGE)
    ledger.compact(STAGE)
    assert set(ledger.state(STAGE)) == {0, 1, 2, 3, 7}


@pytest.mark.parametrize("cut", range(1, 160, 3))
def test_a_torn_last_line_is_no_mark_and_spoils_no_other(tmp_path, cut):
    ledger = Ledger(tmp_path)
    mark(ledger, 1, "a", "w")
    part = tmp_path / STAGE / "part-w.jsonl"
    whole = part.read_bytes()
    assert len(whole) > cut
    part.write_bytes(whole[:-1] + b"\n" + whole.replace(b'"task": 1', b'"task": 2')[: -1 - cut])
    assert set(ledger.state(STAGE)) == {1}
    mark(ledger, 3, "a", "w")
    assert set(ledger.state(STAGE)) == {1, 3}
    ledger.compact(STAGE)
    assert [json.loads(line)["task"] for line in (tmp_path / STAGE / "all.jsonl").open()] == [1, 3]


def test_a_summary_holds_only_for_what_it_was_counted_from(tmp_path):
    ledger = Ledger(tmp_path)
    mark(ledger, 0, "a")
    ledger.compact(STAGE)
    ledger.summarise(STAGE, {"stage": "x"}, {"done": 1})
    assert ledger.summary(STAGE, {"stage": "x"}) == {"done": 1}
    assert ledger.summary(STAGE, {"stage": "y"}) is None
    mark(ledger, 1, "a")
    assert ledger.summary(STAGE, {"stage": "x"}) is None
    ledger.compact(STAGE)
    assert ledger.summary(STAGE, {"stage": "x"}) is None


def test_a_workers_name_is_a_file_name(tmp_path):
    with named("../x"), pytest.raises(ConfigError, match="cannot name a file"):
        Ledger(tmp_path).mark(STAGE, Line(0), "a", OUTCOME, 0.0)
