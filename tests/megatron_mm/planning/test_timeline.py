"""The pipeline's timeline against the papers' bubbles, and against a longest path found without it."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.megatron_mm.planning.timeline import Pass, idle, order, play, total


def even(stages: int, chunks: int, seconds: float) -> list[list[float]]:
    return [[seconds] * chunks for _ in range(stages)]


@pytest.mark.parametrize(("p", "m"), [(1, 3), (2, 2), (4, 4), (4, 16), (8, 5)])
def test_even_stages_idle_for_p_minus_1_passes_of_m(p: int, m: int) -> None:
    """arXiv 2104.04473, 2.2.1: the bubble is (p - 1) (tf + tb), which is (p - 1) / m of the ideal time."""
    events = play(even(p, 1, 1.0), even(p, 1, 2.0), m)
    assert total(events) == pytest.approx(m * 3.0 * (1 + (p - 1) / m))
    assert all(idle(events, stage) == pytest.approx((p - 1) * 3.0) for stage in range(p))


@pytest.mark.parametrize(("p", "v", "m"), [(2, 2, 2), (2, 3, 4), (4, 2, 8), (4, 5, 8), (8, 2, 8)])
def test_interleaving_divides_the_bubble_by_the_number_of_chunks(p: int, v: int, m: int) -> None:
    """The same, 2.2.2: (p - 1) / (v m)."""
    events = play(even(p, v, 1.0 / v), even(p, v, 2.0 / v), m)
    assert total(events) == pytest.approx(m * 3.0 * (1 + (p - 1) / (v * m)))


def test_four_stages_in_their_order() -> None:
    """The paper's figure 4: what the third of four stages does with 8 micro-batches; the last has no warm-up."""
    told = [("B" if each.backward else "F") + str(each.micro_batch) for each in order(4, 1, 8, 2)]
    assert told == ["F0", "F1", "B0", "F2", "B1", "F3", "B2", "F4", "B3", "F5", "B4", "F6", "B5", "F7", "B6", "B7"]
    assert [each.backward for each in order(4, 1, 8, 3)] == [False, True] * 8


def test_four_stages_of_two_chunks_in_their_order() -> None:
    """Its figure 4 below, counted from 0: the first stage warms up with 0-3 of both chunks, and 4, 5, 6 of one."""
    first = order(4, 2, 8, 0)
    warm = list(itertools.takewhile(lambda each: not each.backward, first))
    assert [(each.chunk, each.micro_batch) for each in warm] == [
        *((chunk, batch) for chunk in (0, 1) for batch in range(4)),
        *((0, batch) for batch in (4, 5, 6)),
    ]
    backward = [(each.chunk, each.micro_batch) for each in first if each.backward]
    assert backward[:8] == [(chunk, batch) for chunk in (1, 0) for batch in range(4)]


shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)).map(
    lambda shape: (shape[0], shape[1] if shape[0] > 1 else 1, shape[2] * shape[0])
)


@settings(max_examples=60, deadline=None)
@given(shapes, st.data())
def test_uneven_stages_take_the_longest_path(shape: tuple[int, int, int], data: st.DataObject) -> None:
    """The end is the longest way through the graph of what waits for what, found by recursion from the last pass."""
    stages, chunks, m = shape
    drawn = st.lists(st.lists(st.integers(1, 9), min_size=chunks, max_size=chunks), min_size=stages, max_size=stages)
    forward, backward, send = data.draw(drawn), data.draw(drawn), data.draw(st.integers(0, 3))
    orders = [order(stages, chunks, m, stage) for stage in range(stages)]
    assert all(len(each) == len(set(each)) == 2 * chunks * m for each in orders)

    @functools.cache
    def end(stage: int, of: Pass) -> int:
        before = orders[stage][: orders[stage].index(of)]
        ready = [end(stage, before[-1])] if before else []
        virtual = of.chunk * stages + stage  # Megatron's layout: chunk c of stage s is part c * p + s of the layers
        source = virtual + 1 if of.backward else virtual - 1
        if of.backward and source == stages * chunks:
            ready.append(end(stage, Pass(of.chunk, of.micro_batch, False)))
        elif 0 <= source < stages * chunks:
            late = send if source % stages != stage else 0
            ready.append(end(source % stages, Pass(source // stages, of.micro_batch, of.backward)) + late)
        return max([0, *ready]) + (backward if of.backward else forward)[stage][of.chunk]

    events = play(forward, backward, m, send)
    assert len(events) == 2 * stages * chunks * m
    assert all(event.end == end(event.stage, event.of) for event in events)
    for stage in range(stages):
        mine = [event for event in events if event.stage == stage]
        assert all(first.end <= then.start for first, then in itertools.pairwise(mine))
