"""Who meets whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megavlm.slurm.preflight.pairs import rounds_of_pairs


@given(st.integers(0, 65), st.integers(0, 8))
def test_every_round_pairs_all_and_nobody_meets_the_same_twice(count, rounds):
    nodes = [f"n{number}" for number in range(count)]
    plan = rounds_of_pairs(nodes, rounds)
    assert len(plan) == max(0, min(rounds, count - 1 + count % 2))
    met = set()
    for pairs in plan:
        seen = [node for pair in pairs for node in pair]
        assert len(seen) == len(set(seen)) == count - count % 2 and set(seen) <= set(nodes)
        met |= {frozenset(pair) for pair in pairs}
    assert len(met) == sum(map(len, plan))


def test_four_nodes_meet_everyone_in_three_rounds():
    met = {frozenset(pair) for pairs in rounds_of_pairs("abcd") for pair in pairs}
    assert len(met) == 6
