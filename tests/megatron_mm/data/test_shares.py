"""Tiles in equal shares, packs to replicas: every tile is looked at once and comes to whoever needs it."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.data.shares import Grid, Shares, assign

sizes = st.integers(1, 3)


@st.composite
def shares(draw: st.DrawFn) -> Shares:
    grid = Grid(draw(sizes), draw(sizes), draw(sizes))
    counts = st.lists(st.integers(0, 9), min_size=0, max_size=4)
    return Shares(grid, [draw(counts) for _ in range(grid.dp)])


@given(shares())
def test_nobody_looks_at_more_than_one_tile_more_than_another(made: Shares) -> None:
    runs = [made.looks_at(member) for member in range(made.grid.size)]
    assert sorted(tile for run in runs for tile in run) == list(range(made.total))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


@given(shares(), st.data())
def test_work_is_shared_to_within_a_tiles(made: Shares, data: st.DataObject) -> None:
    """No share is a whole tile's work away from an equal one: shares are runs of neighbours."""
    work = data.draw(st.lists(st.integers(1, 700), min_size=made.total, max_size=made.total))
    made = replace(made, work=work)
    runs = [made.looks_at(member) for member in range(made.grid.size)]
    assert sorted(tile for run in runs for tile in run) == list(range(made.total))
    for run in runs:
        done = sum(work[tile] for tile in run)
        assert not work or abs(done - sum(work) / made.grid.size) < max(work)


@given(shares(), st.integers(1, 700))
def test_tiles_of_equal_work_are_shared_as_tiles_of_one_size(made: Shares, each: int) -> None:
    by_work = replace(made, work=[each] * made.total)
    for member in range(made.grid.size):
        assert by_work.looks_at(member) == made.looks_at(member)


def test_tiles_of_any_work_are_all_looked_at() -> None:
    for work in ([0, 0, 9, 1], [9, 0, 0, 0], [0, 0, 0, 0]):
        runs = [Shares(Grid(2), [[3], [1]], work=work).looks_at(k) for k in range(2)]
        assert [tile for run in runs for tile in run] == [0, 1, 2, 3]


@given(shares(), st.integers(1, 4))
def test_tensor_parallel_ranks_decode_a_share_between_them(made: Shares, tp: int) -> None:
    for member in range(made.grid.size):
        parts = [made.decodes(member, tp, rank) for rank in range(tp)]
        assert [tile for part in parts for tile in part] == list(made.looks_at(member))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(shares())
def test_what_is_sent_is_what_is_received_and_all_that_is_needed(made: Shares) -> None:
    members = range(made.grid.size)
    for sender in members:
        for receiver in members:
            assert list(made.sends(sender)[receiver]) == list(made.receives(receiver)[sender])
    for member in members:
        replica, stage, _ = made.grid.place(member)
        before = sum(map(sum, made.counts[:replica]))
        wanted = range(before, before + sum(made.counts[replica])) if stage == 0 else range(0)
        assert sorted(tile for run in made.receives(member) for tile in run) == list(wanted)


def test_members_are_numbered_as_ranks_are() -> None:
    """megatron-core's order: context-parallel ranks are neighbours, pipeline stages farthest apart."""
    grid = Grid(dp=2, pp=2, cp=2)
    assert [grid.place(member) for member in range(8)] == [
        (0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1), (0, 1, 0), (0, 1, 1), (1, 1, 0), (1, 1, 1),
    ]  # fmt: skip


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 7))
def test_packs_go_to_replicas_evenly_in_their_order(costs: list[int], replicas: int) -> None:
    chosen = assign([float(cost) for cost in costs], replicas)
    assert sorted(pack for packs in chosen for pack in packs) == list(range(len(costs)))
    assert all(packs == sorted(packs) for packs in chosen)
    assert max(map(len, chosen)) - min(map(len, chosen)) <= 1
    assert assign([float(cost) for cost in costs], replicas) == chosen


@given(st.lists(st.integers(0, 30), min_size=4, max_size=6))
def test_two_replicas_get_nearly_the_best_division(costs: list[int]) -> None:
    """Against all divisions: the costliest first is at most 4/3 of the best, and here one item more at most."""
    half = -(-len(costs) // 2)
    best = min(max(sum(order[:half]), sum(order[half:])) for order in permutations(costs))
    ours = max(sum(costs[k] for k in packs) for packs in assign([float(c) for c in costs], 2))
    assert ours <= best + max(costs)
