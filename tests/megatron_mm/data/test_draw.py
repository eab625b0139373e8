"""Draws from a mixture: passes, weights, blocks of shards, substitutes."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.config import Mixture
from megavlm.megatron_mm.data.columns import SizesInMemory, usable
from megavlm.megatron_mm.data.draw import Source, draw
from megavlm.megatron_mm.data.items import Items, Ragged
from megavlm.megatron_mm.data.mixture import sources
from megavlm.megatron_mm.data.substitutes import substitutes

CAPACITY = 100


Images = list[list[list[int]]]  # of each sample: tiles, columns and rows of each image


def ragged(lists: Images) -> Ragged:
    flat = [value for each in lists for value in each]
    return Ragged(np.array(flat, np.int16).reshape(-1, 3), np.cumsum([0, *map(len, lists)], dtype=np.int64))


def sizes(lengths: list[int], starts: list[int] | None = None, images: Images | None = None) -> SizesInMemory:
    tokens = np.array(lengths, np.int32)
    return SizesInMemory(
        np.array(starts or [0, len(lengths)], np.int64), tokens, tokens // 2, ragged(images or [[]] * len(lengths))
    )


def take(of: list[Source], count: int, window: int = 16, seed: int = 0) -> Items:
    parts, held = [], 0
    for part in draw(of, CAPACITY, window, seed):
        parts.append(part)
        held += len(part)
        if held >= count:
            break
    return Items.concat(parts)[:count]


SETS = st.lists(st.lists(st.integers(0, 2 * CAPACITY), min_size=1, max_size=40), min_size=1, max_size=3)


@given(SETS, st.integers(1, 4), st.integers(1, 3), st.integers(0, 4))
def test_every_pass_holds_every_usable_sample_once(lengths: list, shards: int, window: int, seed: int) -> None:
    good = [[k for k, length in enumerate(each) if 0 < length <= CAPACITY] for each in lengths]
    of = [
        Source(
            k, f"s{k}", sizes(each, np.linspace(0, len(each), shards + 1).astype(int).tolist()), 1.0, 3 * len(good[k])
        )
        for k, each in enumerate(lengths)
        if good[k]
    ]
    drawn = Items.concat(list(draw(of, CAPACITY, window, seed)))
    assert len(drawn) == sum(3 * len(each) for each in good)
    for source in of:
        mine = drawn.take(np.flatnonzero(drawn.set == source.number))
        assert mine.epoch.tolist() == sorted(mine.epoch.tolist())
        for epoch in range(3):
            assert sorted(mine.index[mine.epoch == epoch].tolist()) == good[source.number]
    tokens = [lengths[number][index] for number, index in zip(drawn.set.tolist(), drawn.index.tolist(), strict=True)]
    assert drawn.tokens.tolist() == tokens and drawn.targets.tolist() == [length // 2 for length in tokens]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.integers(0, 9))
def test_any_run_holds_each_set_by_its_weight(weights: list[float], seed: int) -> None:
    drawn = take([Source(k, f"s{k}", sizes([2] * 7), weight) for k, weight in enumerate(weights)], 9000, seed=seed)
    for first, last in ((0, 9000), (100, 200), (4000, 8000)):
        counts = np.bincount(drawn.set[first:last], minlength=len(weights))
        # one for each end of the run, and as many for the other sets' being early or late
        assert np.abs(counts - (last - first) * np.array(weights) / sum(weights)).max() <= 2 + 2 * len(weights)


def test_passes_differ_and_seeds_differ() -> None:
    one = take([Source(0, "a", sizes([3] * 50), 1.0)], 100)
    other = take([Source(0, "a", sizes([3] * 50), 1.0)], 100, seed=1)
    assert one.index[:50].tolist() != one.index[50:].tolist() != other.index[50:].tolist()
    assert take([Source(0, "a", sizes([3] * 50), 1.0)], 70).index.tolist() == one.index[:70].tolist()


def test_few_shards_are_open_at_once_and_none_twice_in_a_pass() -> None:
    starts = list(range(0, 1001, 10))
    drawn = take([Source(0, "a", sizes([3] * 1000, starts), 1.0)], 2000, window=4)
    orders = []
    for epoch in range(2):
        shards = drawn.index[epoch * 1000 : (epoch + 1) * 1000] // 10
        blocks = [sorted(set(shards[k : k + 40].tolist())) for k in range(0, 1000, 40)]
        assert all(len(block) == 4 for block in blocks)
        assert sorted(itertools.chain(*blocks)) == list(range(100))
        orders.append(blocks)
    assert orders[0] != orders[1]  # other shards together, not only in another order


def mixture(sets: dict, **options: object) -> Mixture:
    return Mixture.parse({"sets": sets, "sequence_length": CAPACITY, "packs_per_batch": 1, **options})


def test_shares_become_rates_and_ends() -> None:
    of = {"big": sizes([5] * 900 + [0] * 50 + [500] * 50), "small": sizes([5] * 100)}
    assert usable(of["big"], CAPACITY) == 900

    def told(sets: dict, **options: object) -> list[tuple[float, int | None]]:
        return [(source.weight, source.quota) for source in sources(mixture(sets, **options), of)]

    assert told({"big": {}, "small": {}}) == [(900, None), (100, None)]
    assert told({"big": {}, "small": {}}, temperature=2.0) == [(30, None), (10, None)]
    assert told({"big": {"weight": 1}, "small": {"weight": 3, "cap": 7}}) == [(1, None), (3, 7)]
    assert told({"big": {"epochs": 1}, "small": {"epochs": 2.5}}) == [(900, 900), (250, 250)]
    assert told({"big": {"epochs": 1, "cap": 50}, "small": {}}) == [(900, 50), (100, None)]
    assert [source.name for source in sources(mixture({"big": {"weight": 0}, "small": {"weight": 1}}), of)] == ["small"]


def test_sets_with_epochs_end_together() -> None:
    of = sources(mixture({"a": {"epochs": 1}, "b": {"epochs": 3}}), {"a": sizes([5] * 3000), "b": sizes([5] * 400)})
    drawn = Items.concat(list(draw(of, CAPACITY, 1, 0)))
    assert Counter(drawn.set.tolist()) == {0: 3000, 1: 1200}
    last = [int(np.flatnonzero(drawn.set == k)[-1]) for k in (0, 1)]
    assert min(last) >= 4200 - 10


def test_a_capped_set_leaves_the_rest_to_the_others() -> None:
    of = [Source(0, "a", sizes([5] * 9), 1.0, 20), Source(1, "b", sizes([5] * 9), 1e-6)]
    drawn = take(of, 20_000)
    assert np.count_nonzero(drawn.set == 0) == 20 and np.count_nonzero(drawn.set == 1) == 19_980


CUTS = st.sampled_from([[1, 1, 1], [7, 3, 2], [7, 2, 3], [6, 3, 2], [3, 2, 1]])  # some differ in one number alone
LISTS = st.lists(st.lists(CUTS, max_size=3), min_size=1, max_size=30)


@given(LISTS, st.randoms(use_true_random=False))
def test_a_substitute_has_the_same_tiles_and_fits(images: Images, random) -> None:
    tokens = [random.randint(1, 9) for _ in images]
    found = substitutes(np.arange(len(images)) + 7, np.array(tokens, np.int32), ragged(images))
    for k, other in enumerate(found.tolist()):
        could = [j for j in range(len(images)) if j != k and images[j] == images[k] and tokens[j] <= tokens[k]]
        if other < 0:
            assert not could
        else:
            shorter = [tokens[j] for j in could if tokens[j] < tokens[k]]
            assert other - 7 in could and tokens[other - 7] >= max(shorter, default=0)


@given(LISTS, st.data())
def test_ragged_lists_are_lists(images: Images, data) -> None:
    made = ragged(images)
    which = data.draw(st.lists(st.integers(0, len(images) - 1), max_size=20))
    chosen = made.take(np.array(which, np.int64))
    lists = [chosen.values[a:b].tolist() for a, b in itertools.pairwise(chosen.offsets.tolist())]
    assert lists == [images[k] for k in which]
    assert made.tiles().tolist() == [sum(tiles for tiles, *_ in each) for each in images]
    both = Ragged.concat([made, chosen])
    assert len(both) == len(made) + len(chosen) and both.counts.tolist() == [*map(len, images), *map(len, lists)]
