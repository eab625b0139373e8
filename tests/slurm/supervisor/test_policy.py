"""What follows an attempt, for every class, history and budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.slurm.profile import Attempts
from megavlm.slurm.supervisor.policy import FINAL, Ending, Standing, Verdict, decide

NODES = ("n1", "n2", "n3", "n4")
CODES = {Verdict.FINISHED: 0, Verdict.USER_ERROR: 2, Verdict.REFUSED: 3, Verdict.SAVED: 4}
some_nodes = st.lists(st.sampled_from(NODES), unique=True, max_size=4).map(tuple)
budgets = st.builds(Attempts, most=st.integers(1, 9), without_progress=st.integers(1, 4))
standings = st.builds(
    Standing, usable=some_nodes, needed=st.integers(1, 4), asked=st.booleans(), cancelled=st.booleans()
)


def ending(verdict=Verdict.CRASH, progress=True, bad=(), suspects=()):
    return Ending(verdict, CODES.get(verdict, 1), f"because of {verdict}", progress, bad, suspects)


endings = st.builds(
    ending, verdict=st.sampled_from(Verdict), progress=st.booleans(), bad=some_nodes, suspects=some_nodes
)
FREE = Standing(usable=NODES, needed=2)
BUDGET = Attempts(most=50, without_progress=3)


@pytest.mark.parametrize("verdict", sorted(FINAL))
@given(past=st.lists(endings), standing=standings, budget=budgets)
def test_what_trying_again_cannot_mend_is_never_tried_again(verdict, past, standing, budget):
    decision = decide(ending(verdict), past, standing, budget)
    assert decision.action == "stop" and decision.exit_code == CODES.get(verdict, 1)


@given(ending=endings, past=st.lists(endings), standing=standings, budget=budgets)
def test_a_cancelled_run_is_never_started_again(ending, past, standing, budget):
    cancelled = Standing(standing.usable, standing.needed, standing.asked, cancelled=True)
    assert decide(ending, past, cancelled, budget).action == "stop"


@given(endings=st.lists(endings, min_size=12, max_size=12), standing=standings, budget=budgets)
def test_every_job_stops_within_its_budgets(endings, standing, budget):
    actions = [decide(one, endings[:number], standing, budget).action for number, one in enumerate(endings)]
    assert "stop" in actions[: budget.most]
    idle = 0
    for one, action in zip(endings, actions, strict=True):
        idle = 0 if one.progress else idle + 1
        assert action == "stop" or idle < budget.without_progress


@given(ending=endings, past=st.lists(endings, max_size=6), standing=standings, budget=budgets)
def test_what_is_not_finished_never_looks_like_success(ending, past, standing, budget):
    decision = decide(ending, past, standing, budget)
    assert (decision.exit_code == 0) == (ending.verdict == Verdict.FINISHED)
    assert ending.reason in decision.reason


@given(ending=endings, past=st.lists(endings, max_size=6), standing=standings, budget=budgets)
def test_it_is_tried_here_only_on_enough_good_nodes_and_when_nobody_wants_them_back(ending, past, standing, budget):
    decision = decide(ending, past, standing, budget)
    if decision.action == "retry":
        assert len(set(standing.usable) - set(decision.exclude)) >= standing.needed and not standing.asked
        assert ending.verdict not in {Verdict.SAVED, Verdict.NOT_STARTED}


@given(ending=endings, past=st.lists(endings, max_size=6), standing=standings, budget=budgets)
def test_a_bad_node_is_excluded_at_once_and_a_suspect_the_second_time(ending, past, standing, budget):
    decision = decide(ending, past, standing, budget)
    if decision.action != "stop":
        times = [node for one in [*past, ending] for node in one.suspects]
        twice = {node for node in ending.suspects if times.count(node) >= 2}
        assert set(decision.exclude) == {*ending.bad, *twice}


@pytest.mark.parametrize(
    ("verdict", "standing", "action"),
    [
        (Verdict.SAVED, FREE, "leave"),
        (Verdict.CRASH, FREE, "retry"),
        (Verdict.HANG, FREE, "retry"),
        (Verdict.CRASH, Standing(NODES, 2, asked=True), "leave"),
        (Verdict.NOT_STARTED, FREE, "leave"),
        (Verdict.PREFLIGHT, Standing(("n1",), 2), "leave"),
        (Verdict.NODE_FAILURE, Standing(("n1", "n3"), 2), "retry"),
        (Verdict.NODE_FAILURE, Standing(("n1",), 2), "leave"),
        (Verdict.LOST, FREE, "retry"),
    ],
)
def test_what_each_class_leads_to(verdict, standing, action):
    assert decide(ending(verdict), [], standing, BUDGET).action == action


def test_the_reason_says_which_budget_is_spent_and_how_the_last_one_ended():
    idle = [ending(progress=False)] * 2
    assert decide(ending(progress=False), idle, FREE, BUDGET).reason == (
        "3 attempts in a row saved nothing (attempts.without_progress); the last one: because of crash"
    )
    spent = decide(ending(), [ending()], FREE, Attempts(most=2, without_progress=5))
    assert spent.reason.startswith("2 attempts made (attempts.most); the last one:")
    assert decide(ending(Verdict.SAVED), [ending()], FREE, Attempts(most=2, without_progress=5)).exit_code == 4
