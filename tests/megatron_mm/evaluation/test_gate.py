"""The paired gate: verdicts, refusals, determinism, and what it says about undecided cases."""

from __future__ import annotations

import json
import random

import pytest

from megavlm.megatron_mm.evaluation.gate import GateResult, gate_of, paired_gate
from megavlm.megatron_mm.evaluation.predictions import Prediction
from megavlm.platform.errors import ConfigError, InputError


def predictions(right: list[bool]) -> list[Prediction]:
    return [Prediction(f"item-{i}", "spelling", ok, "a" if ok else "b", "a") for i, ok in enumerate(right)]


def test_no_change_on_enough_items_passes() -> None:
    same = predictions([True] * 189)
    result = paired_gate(same, same, max_drop=0.02)
    assert (result.verdict, result.exit_code, result.drop, result.items_needed) == ("pass", 0, 0.0, None)
    assert "passed" in result.sentence()


def test_no_change_on_too_few_items_is_undecided_and_names_the_number_that_decides() -> None:
    same = predictions([True] * 100)
    result = paired_gate(same, same, max_drop=0.02)
    assert (result.verdict, result.exit_code, result.items_needed) == ("undecided", 5, 189)
    assert "189" in result.sentence()


def test_a_collapse_fails_even_on_few_items() -> None:
    result = paired_gate(predictions([True] * 40), predictions([True] * 10 + [False] * 30), max_drop=0.02)
    assert (result.verdict, result.exit_code, result.lost, result.gained) == ("fail", 3, 30, 0)
    assert result.drop == pytest.approx(0.75) and result.drop_low > 0.02
    assert "failed" in result.sentence()


def test_gains_cancel_losses_in_the_drop_but_widen_the_interval() -> None:
    before = predictions([True] * 280 + [False] * 20)
    after = predictions([False] * 20 + [True] * 280)
    result = paired_gate(before, after, max_drop=0.02)
    assert (result.drop, result.lost, result.gained, result.verdict) == (0.0, 20, 20, "undecided")


def test_pairing_is_by_id_and_not_by_order() -> None:
    before = predictions([True, False] * 100)
    shuffled = list(before)
    random.Random(3).shuffle(shuffled)
    result = paired_gate(before, shuffled, max_drop=0.05)
    assert (result.lost, result.gained) == (0, 0)
    assert result == paired_gate(shuffled, before, max_drop=0.05)


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items[:-1],
        lambda items: [*items, items[0]],
        lambda items: [Prediction("stranger", "spelling", True, "a", "a"), *items[1:]],
        lambda items: [Prediction(items[0].id, "spelling", True, "c", "c"), *items[1:]],
    ],
    ids=["missing", "twice", "other id", "other expected answer"],
)
def test_other_items_are_refused(change: object) -> None:
    baseline = predictions([True] * 20)
    with pytest.raises(InputError) as caught:
        paired_gate(baseline, change(baseline), max_drop=0.02)
    assert caught.value.fix and caught.value.exit_code == 2


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(InputError, match="no items"):
        paired_gate([], [], max_drop=0.02)


@pytest.mark.parametrize("limits", [{"max_drop": 2}, {"max_drop": -0.1}, {"max_drop": 0.02, "confidence": 95}])
def test_limits_that_are_no_fractions_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        paired_gate(predictions([True]), predictions([True]), **limits)


def changed(lost: int, gained: int, items: int) -> tuple[list[Prediction], list[Prediction]]:
    """As many items lost and gained as said, of items that are right before but for those gained."""
    before = [False] * gained + [True] * (items - gained)
    after = [True] * gained + [False] * lost + [True] * (items - gained - lost)
    return predictions(before), predictions(after)


@pytest.mark.parametrize(("lost", "gained", "items"), [(0, 0, 50), (3, 1, 120), (4, 4, 100), (9, 1, 200)])
def test_the_number_that_decides_does_and_fewer_do_not(lost: int, gained: int, items: int) -> None:
    needed = paired_gate(*changed(lost, gained, items), max_drop=0.02).items_needed
    assert needed and needed > items

    def at(times: int) -> str:
        return paired_gate(*changed(lost * times, gained * times, items * times), max_drop=0.02).verdict

    assert at(-(-needed // items)) != "undecided"  # whole multiples keep the shares exactly
    assert at((needed - 1) // items) == "undecided"


def test_a_drop_on_the_limit_itself_is_decided_by_no_number() -> None:
    result = paired_gate(*changed(2, 0, 100), max_drop=0.02)
    assert (result.verdict, result.items_needed) == ("undecided", None)


def test_164_items_and_a_drop_of_one_point_are_undecided() -> None:
    result = paired_gate(*changed(9, 7, 164), max_drop=0.01)
    assert result.drop == pytest.approx(0.0122, abs=1e-4)
    assert (result.verdict, result.exit_code) == ("undecided", 5)
    assert result.items_needed and result.items_needed > 10_000  # so near to the limit
    unchanged = paired_gate(*changed(0, 0, 164), max_drop=0.01)
    assert (unchanged.verdict, unchanged.items_needed) == ("undecided", 381)  # 3.8416 x 0.99 / 0.01
    assert "about 381 items would decide" in unchanged.sentence()


def shares(values: list[float]) -> list[Prediction]:
    return [Prediction(f"i{i}", "", value == 1, "", "x", score=value) for i, value in enumerate(values)]


def test_shares_count_as_what_they_are_worth() -> None:
    result = paired_gate(shares([1.0, 0.6, 0.3] * 100), shares([0.9, 0.6, 0.6] * 100), max_drop=0.02)
    assert (result.lost, result.gained) == (100, 100)
    assert result.drop == pytest.approx(-0.2 / 3) and result.accuracy_before == pytest.approx(1.9 / 3)
    assert result.verdict == "pass"


def test_shares_of_0_and_1_are_judged_like_right_and_wrong() -> None:
    before, after = changed(6, 3, 150)
    scored = [shares([float(item.correct) for item in side]) for side in (before, after)]
    assert paired_gate(*scored, max_drop=0.02) == paired_gate(before, after, max_drop=0.02)


FOUR = {"mmlu": (70, 60, 2000), "gsm8k": (20, 25, 1300), "math": (150, 180, 1500), "humaneval": (4, 5, 164)}


def of(tables: dict[str, tuple[int, int, int]]) -> dict[str, tuple[list[Prediction], list[Prediction]]]:
    return {name: changed(*table) for name, table in tables.items()}


def test_every_suite_counts_alike_in_the_average() -> None:
    result = gate_of(of(FOUR), max_drop=0.02)
    drops = [(lost - gained) / items for lost, gained, items in FOUR.values()]
    assert result.drop == pytest.approx(sum(drops) / 4)
    assert (result.items, result.lost, result.verdict) == (4964, 244, "pass")
    assert list(result.suites) == list(FOUR) and result.suites["math"].drop == pytest.approx(-0.02)
    assert result.suites["mmlu"].verdict is None and result.mean and result.mean.verdict == "pass"
    assert "the average drop" in result.sentence() and "4 suites" in result.sentence()


def test_a_suite_that_falls_fails_where_each_has_a_limit_though_the_average_holds() -> None:
    tables = FOUR | {"mmlu": (200, 40, 2000), "math": (50, 250, 1500)}
    assert gate_of(of(tables), max_drop=0.02).verdict == "pass"
    result = gate_of(of(tables), max_drop=0.02, max_drop_each=0.03)
    assert (result.verdict, result.exit_code) == ("fail", 3)
    assert [name for name, drop in result.suites.items() if drop.verdict == "fail"] == ["mmlu"]
    assert "mmlu drops by at least" in result.sentence() and "math" not in result.sentence()


def test_a_small_suite_leaves_it_undecided_and_the_number_keeps_the_proportions() -> None:
    result = gate_of(of(FOUR), max_drop=0.02, max_drop_each=0.03)
    assert (result.verdict, result.exit_code) == ("undecided", 5)
    assert "humaneval drops by up to" in result.sentence()
    times = result.items_needed / result.items
    assert times > 1
    for name, drop in result.suites.items():
        assert drop.items_needed == pytest.approx(FOUR[name][2] * times, abs=1)
    more = {name: tuple(round(1.1 * times * part) for part in table) for name, table in FOUR.items()}
    assert gate_of(of(more), max_drop=0.02, max_drop_each=0.03).verdict == "pass"


def test_the_lower_ends_share_a_level_where_each_suite_is_asked() -> None:
    alone, each = gate_of(of(FOUR), max_drop=0.02), gate_of(of(FOUR), max_drop=0.02, max_drop_each=0.5)
    assert (alone.drop_low, alone.drop_high) == (each.drop_low, each.drop_high)
    assert alone.mean and each.mean and alone.mean.low_shared == alone.drop_low > each.mean.low_shared
    shared = gate_of({"mmlu": changed(*FOUR["mmlu"])}, max_drop=0.02, confidence=1 - 0.05 / 5)
    assert each.suites["mmlu"].low_shared == pytest.approx(shared.drop_low, abs=1e-12)


def test_the_tighter_limit_holds_for_a_suite_alone() -> None:
    result = gate_of({"mmlu": changed(80, 0, 1000)}, max_drop=0.2, max_drop_each=0.02)
    assert (result.verdict, result.max_drop) == ("fail", 0.02)


def test_other_items_of_a_suite_are_refused_by_its_name() -> None:
    pairs = of(FOUR)
    pairs["gsm8k"] = (pairs["gsm8k"][0], pairs["gsm8k"][1][:-1])
    with pytest.raises(InputError, match="gsm8k"):
        gate_of(pairs, max_drop=0.02)
    with pytest.raises(InputError, match="no suites"):
        gate_of({}, max_drop=0.02)


def test_several_suites_are_plain_json_and_back() -> None:
    result = gate_of(of(FOUR), max_drop=0.02, max_drop_each=0.03)
    told = json.loads(json.dumps(result.to_json()))
    assert GateResult.from_json(told) == result
    assert set(told["suites"]) == set(FOUR) and told["mean"]["drop"] == told["drop"]


def test_what_was_written_for_one_suite_before_is_still_read() -> None:
    told = paired_gate(*changed(3, 0, 200), max_drop=0.02).to_json()
    old = {key: value for key, value in told.items() if key not in {"suites", "mean", "max_drop_each"}}
    read = GateResult.from_json(old | {"stage": "sft", "suite": "text"})
    assert read.drop == told["drop"] and "undecided" in read.sentence()


def test_result_is_plain_json() -> None:
    same = predictions([True] * 10)
    result = paired_gate(same, same, max_drop=0.02)
    told = json.loads(json.dumps(result.to_json()))
    assert GateResult.from_json(told) == result
    assert told["verdict"] == "undecided" and told["exit_code"] == 5 and told["items"] == 10
