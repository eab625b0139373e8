"""The paired gate: verdicts, refusals, determinism, and what it says about undecided cases."""

from __future__ import annotations

import json
import random

import pytest

from megavlm.megatron_mm.evaluation.gate import GateResult, items_to_decide, paired_gate
from megavlm.megatron_mm.evaluation.intervals import tango_interval
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


@pytest.mark.parametrize(("lost", "gained", "items"), [(0, 0, 50), (3, 1, 120), (4, 4, 100), (9, 1, 200)])
def test_the_number_that_decides_is_the_smallest(lost: int, gained: int, items: int) -> None:
    def decided(count: int) -> bool:
        low, high = tango_interval(lost * count / items, gained * count / items, count)
        return high <= 0.02 or low > 0.02

    needed = items_to_decide(lost, gained, items, 0.02, 0.95)
    assert needed and decided(needed) and not decided(needed - 1)


def test_a_drop_on_the_limit_itself_is_decided_by_no_number() -> None:
    assert items_to_decide(2, 0, 100, 0.02, 0.95) is None


def test_result_is_plain_json() -> None:
    same = predictions([True] * 10)
    result = paired_gate(same, same, max_drop=0.02)
    told = json.loads(json.dumps(result.to_json()))
    assert GateResult.from_json(told) == result
    assert told["verdict"] == "undecided" and told["exit_code"] == 5 and told["items"] == 10
