"""The verdict on planted figures: the culprits are named, with the value, and nobody else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.slurm.preflight.figures import FIGURES
from megavlm.slurm.preflight.fleet import slow
from megavlm.slurm.preflight.judge import judge, judge_records
from megavlm.slurm.profile import Preflight

OPTIONS = Preflight(worst=0.5, seconds=90)
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "code": "abc", "kernel": "6.1"}
# Noise below the bar: the least value, 1, is more than half of any median of these.
noise = st.floats(1.0, 1.9)


def record(**parts):
    healthy = {
        "figures": dict.fromkeys(FIGURES, 1e9),
        "counts": {"gpus": 8, "infiniband_ports": 8, "infiniband_gbit": 3200.0},
        "versions": VERSIONS,
        "free": {"memory_free": 2e12},
        "clock": {"seconds": 0.002, "error": 0.001},
        "gpus": [],
        "gpus_given": 8,
        "errors": {},
        "met": True,
    }
    return healthy | parts


def fleet(count=4, **odd):
    """n1, n2, ... and what is odd about some of them."""
    return {f"n{number}": odd.get(f"n{number}", record()) for number in range(1, count + 1)}


def bad(records, options=OPTIONS):
    return judge_records(records, options).bad


def test_a_healthy_fleet_is_fit_and_has_medians():
    verdict = judge_records(fleet(), OPTIONS)
    assert verdict.bad == {} and verdict.notes == {}
    assert verdict.median == dict.fromkeys(FIGURES, 1e9) and verdict.usual["gpus"] == 8
    assert [row["ok"] for row in verdict.rows] == [True] * 4


@given(st.lists(noise, min_size=2, max_size=40), st.sampled_from(list(FIGURES)), st.floats(0.01, 0.49), st.data())
def test_one_culprit_among_noisy_nodes_is_named_alone(rates, figure, part, data):
    names = [f"n{number}" for number in range(len(rates) + 1)]
    culprit = data.draw(st.sampled_from(names))
    others = iter(rates)
    records = {}
    for name in names:
        value = part if name == culprit else next(others)  # the others' median is at least 1
        records[name] = record(figures=dict.fromkeys(FIGURES, 1.0) | {figure: value})
    assert set(bad(records)) == {culprit}
    assert FIGURES[figure].title in bad(records)[culprit]


@given(st.lists(noise, min_size=1, max_size=40))
def test_noise_accuses_nobody(rates):
    assert bad({f"n{i}": record(figures=dict.fromkeys(FIGURES, rate)) for i, rate in enumerate(rates)}) == {}


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12), st.randoms())
def test_the_order_of_the_nodes_makes_no_difference(rates, random):
    records = {f"n{i}": record(figures={"network": rate}) for i, rate in enumerate(rates)}
    items = list(records.items())
    random.shuffle(items)
    assert bad(dict(items)) == bad(records)


@given(st.integers(1, 50), st.floats(0.0, 1e12), st.floats(0.05, 0.95))
def test_nodes_that_are_all_alike_are_all_fit(count, value, worst):
    records = {f"n{i}": record(figures=dict.fromkeys(FIGURES, value)) for i in range(count)}
    assert bad(records, Preflight(worst=worst)) == {}


def test_several_culprits_are_named_at_once():
    crawling = record(figures={"network": 1e8})
    assert set(bad(fleet(6, n2=crawling, n5=crawling))) == {"n2", "n5"}


def test_two_nodes_accuse_each_other_of_nothing_relative():
    odd = record(figures={"network": 1.0}, versions={"torch": "1.0"}, counts={"gpus": 1}, clock={"seconds": 99.0})
    odd |= {"gpus_given": 1}
    assert bad(fleet(2, n2=odd)) == {}
    assert slow({"n1": 1.0, "n2": 100.0}, 0.5) == set()


def test_the_profile_sets_the_bar():
    lame = fleet(n3=record(figures=dict.fromkeys(FIGURES, 1e9) | {"disk": 0.6e9}))
    assert bad(lame, Preflight(worst=0.5)) == {} and set(bad(lame, Preflight(worst=0.7))) == {"n3"}


def test_a_reason_names_value_median_and_what_to_do():
    reason = bad(fleet(n3=record(figures=dict.fromkeys(FIGURES, 1e9) | {"network": 5e6})))["n3"]
    assert "network 40 Mbit/s, the median of the nodes is 8000 Mbit/s (0%)" in reason and "cable" in reason


FAULTS = {
    "no answer": (None, "no answer within 90 s"),
    "ecc": (record(gpus=[{"index": 3.0, "ecc_volatile": 2.0}]), "GPU 3 has 2 uncorrected ECC errors"),
    "missing gpu": (record(counts={"gpus": 7}), "7 GPUs answer of 8"),
    "driver": (record(counts={"gpus": 0}, gpu_error="couldn't communicate"), "nvidia-smi fails (couldn't communicate)"),
    "disk": (record(errors={"disk": "No space left on device"}), "cannot be written (No space left on device)"),
    "port": (record(counts={"gpus": 8, "infiniband_ports": 7}), "7 active InfiniBand ports, most nodes have 8"),
    "version": (record(versions=VERSIONS | {"torch": "2.12.0"}), "torch 2.12.0, most nodes have 2.13.0"),
    "no version": (record(versions={"python": "3.11.7", "code": "abc"}), "torch is missing, most nodes have 2.13.0"),
    "clock": (record(clock={"seconds": -3.0, "error": 0.001}), "its clock is 3.0 s behind"),
    "mute": (record(figures={"disk": 1e9}), "no network with any partner"),
    "network": (record(met=False, unreachable="No route to host"), "cannot reach the other nodes (No route to host)"),
}


@pytest.mark.parametrize(("odd", "words"), FAULTS.values(), ids=list(FAULTS))
def test_each_fault_is_named_alone(odd, words):
    found = bad(fleet(n2=odd))
    assert set(found) == {"n2"} and words in found["n2"]


@pytest.mark.parametrize("name", ["no answer", "ecc", "missing gpu", "driver", "disk"])
def test_absolute_faults_need_no_other_node(name):
    odd, words = FAULTS[name]
    assert words in bad({"n1": odd})["n1"]


HARMLESS = {
    "kernel": (record(versions=VERSIONS | {"kernel": "6.2"}), "kernel 6.2, most nodes have 6.1"),
    "memory": (record(free={"memory_free": 2e9}), "1.9 GiB free of memory"),
    "heat": (record(gpus=[{"index": 0.0, "throttle": 64.0, "sm_clock": 900.0, "sm_clock_max": 1980.0}]), "heat"),
    "old errors": (record(gpus=[{"index": 1.0, "ecc_aggregate": 5.0}]), "GPU 1 had 5 uncorrected ECC errors"),
    "late": (record(met=False, late=True), "too late"),
    "small clock error": (record(clock={"seconds": 1.5, "error": 0.6}), None),
    "fake GPUs": (record(counts={}), None),
}


@pytest.mark.parametrize(("odd", "words"), HARMLESS.values(), ids=list(HARMLESS))
def test_what_excludes_nobody_is_at_most_noted(odd, words):
    verdict = judge_records(fleet(n2=odd), OPTIONS)
    assert verdict.bad == {}
    assert (words is None and verdict.notes == {}) or words in verdict.notes["n2"]


def test_a_leading_node_that_died_is_named_and_not_those_who_waited_for_it():
    waited = record(met=False, unreachable="nobody opened the meeting in /runs")
    assert set(bad({"n1": None, "n2": waited, "n3": waited, "n4": waited})) == {"n1"}


def test_records_are_read_from_the_folder_and_a_torn_one_is_no_answer(tmp_path):
    for name in ("n1", "n2", "n3"):
        (tmp_path / f"{name}.json").write_text(json.dumps(record()))
    (tmp_path / "n3.json").write_text('{"figures": {')
    verdict = judge(tmp_path, ["n1", "n2", "n3", "n4"], OPTIONS)
    assert set(verdict.bad) == {"n3", "n4"} and len(verdict.rows) == 4


@pytest.mark.parametrize("junk", [[], "text", {"figures": None}, {"figures": {"network": "fast"}}, {"gpus": 3}, {}])
def test_a_record_of_another_shape_is_no_answer(tmp_path, junk):
    for name in ("n1", "n2", "n3"):
        (tmp_path / f"{name}.json").write_text(json.dumps(record()))
    (tmp_path / "n4.json").write_text(json.dumps(junk))
    assert set(judge(tmp_path, ["n1", "n2", "n3", "n4"], OPTIONS).bad) == {"n4"}
