"""The pilot's arithmetic against known functions, brute force and hand-made numbers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.data_curation.kmeans.size import scaled
from megavlm.data_curation.pilot.draw import by_bytes, evenly
from megavlm.data_curation.pilot.fit import Line, fit, fit_growth, makespan, spread
from megavlm.data_curation.pilot.forecast import grown
from megavlm.data_curation.pilot.measure import Taken
from megavlm.data_curation.pilot.rates import load_rates
from megavlm.data_curation.pilot.show import duration, size
from megavlm.data_curation.source import Shard
from megavlm.data_curation.sources.img2dataset import Img2Dataset
from megavlm.data_curation.stages.assign import Assign
from megavlm.data_curation.stages.cluster import Cluster
from megavlm.data_curation.stages.deduplicate import Deduplicate
from megavlm.data_curation.stages.demand import Demand, Size, Work
from megavlm.data_curation.stages.recaption import Recaption
from megavlm.data_curation.stages.select import Select

seconds = st.floats(0, 1e6)


@given(once=seconds, each=st.floats(0, 1e3), amounts=st.lists(st.floats(1, 1e9), min_size=2, max_size=5, unique=True))
def test_a_line_through_exact_points_is_found(once: float, each: float, amounts: list[float]) -> None:
    found = fit([(amount, once + each * amount) for amount in amounts])
    for amount in (*amounts, 10 * max(amounts)):
        assert found.at(amount) == pytest.approx(once + each * amount, rel=1e-4, abs=1e-6)


@given(points=st.lists(st.tuples(st.integers(0, 10**9), seconds), min_size=1, max_size=6))
def test_nothing_is_negative_and_no_other_line_is_nearer(points: list[tuple[int, float]]) -> None:
    found = fit(points)
    assert found.once >= 0
    assert found.each >= 0

    def error(line: Line) -> float:
        return sum((line.at(amount) - value) ** 2 for amount, value in points)

    most = max(value for _, value in points)
    far = max(amount for amount, _ in points)
    steep = most / far if far else 0.0
    others = [Line(once, each) for once in (0, most / 2, most) for each in (0, steep / 2, steep)]
    assert all(error(found) <= error(line) * (1 + 1e-6) + 1e-6 for line in others)


def test_what_differs_by_chance_does_not_grow() -> None:
    assert fit_growth([(100, 500.0), (400, 503.0)], noise=4.0) == Line(501.5, 0.0)
    assert fit_growth([(100, 500.0), (400, 560.0)], noise=4.0).at(1000) == pytest.approx(680)
    assert fit_growth([(100, 500.0), (103, 560.0)], noise=4.0) == Line(530.0, 0.0)  # two shards of nearly one size
    assert fit_growth([(100, 500.0)], noise=0.0).at(10_000) == 500  # one size tells nothing of growth


def test_a_falling_line_is_level() -> None:
    assert fit([(1, 4.0), (3, 2.0)]).at(100) == pytest.approx(3.0)


@given(commands=st.lists(st.integers(1, 20), min_size=1, max_size=7), workers=st.integers(1, 4))
def test_commands_go_to_whoever_is_free(commands: list[int], workers: int) -> None:
    free = [0] * workers
    for command in commands:
        place = free.index(min(free))
        free[place] += command
    assert makespan(commands, workers) == max(free)


def test_a_last_command_alone_keeps_the_others_waiting() -> None:
    # 20 tasks of one second, 16 in a command: one worker has 16 of them, the other 4
    assert spread(20.0, tasks=20, each=16, workers=2) == 16
    assert spread(20.0, tasks=20, each=5, workers=2, start=3.0) == 2 * (5 + 3)


@given(count=st.integers(1, 3000), wanted=st.integers(1, 4000))
def test_places_are_even(count: int, wanted: int) -> None:
    places = evenly(count, wanted)
    assert len(places) == min(count, wanted)
    assert all(0 <= place < count for place in places)
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert all(gap >= 1 for gap in gaps)
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert abs(places[0] - (count - 1 - places[-1])) <= 1  # as far from the beginning as from the end


def test_samples_follow_bytes() -> None:
    source = Img2Dataset(path="x")
    shards = [Shard(str(number), "", 100 * (number + 1), source) for number in range(4)]
    assert by_bytes(shards, shards[:1], 20) == 200


@given(counts=st.lists(st.integers(1, 100_000), min_size=1, max_size=4, unique=True), share=st.floats(1e-6, 1.0))
def test_levels_keep_falling(counts: list[int], share: float) -> None:
    falling = sorted(counts, reverse=True)
    levels = len(falling)
    if any(count < levels - number for number, count in enumerate(falling)):
        return
    out = scaled(falling, share)
    assert all(a > b for a, b in itertools.pairwise(out))
    assert out[-1] >= 1
    assert all(new <= old for new, old in zip(out, falling, strict=True))


def test_as_many_images_in_a_cluster_as_in_the_full_run() -> None:
    assert Cluster(clusters=50_000).piloted(2000 / 500_000) == {"clusters": 200}
    levels = Cluster(
        clusters=1000, method="hierarchical", levels=({"clusters": 100}, {"clusters": 10}), train_on=50_000
    )
    assert levels.piloted(0.1) == {"clusters": 100, "levels.0.clusters": 10, "levels.1.clusters": 1, "train_on": 5000}
    assert Select(method="balanced", target=1000).piloted(0.01) == {"target": 10}


def test_work_grows_as_the_algorithms_do() -> None:
    one, ten = Size(10_000, 10, 100), Size(100_000, 100, 100)
    cluster = Cluster(clusters=100, iterations=20, train_on=10**9)
    assert cluster.demand(one).work["comparisons"].amount == 10_000 * 100 * 20
    stopped = Size(10_000, 10, 100, notes={"iterations_run": 7})
    assert cluster.demand(stopped).work["comparisons"].amount == 10_000 * 100 * 7
    assert Assign().demand(ten).work["comparisons"].amount == 100_000 * 100
    everything, inside = Deduplicate(), Deduplicate(hash_scope="cluster", epsilon=0.1)
    assert everything.demand(ten).work["hash_pairs"].amount == 100 * everything.demand(one).work["hash_pairs"].amount
    more = Size(100_000, 100, 1000)  # as many images in each of ten times as many clusters
    assert inside.demand(more).work["feature_pairs"].amount == 10 * inside.demand(one).work["feature_pairs"].amount
    assert Select(nearest=300).demand(Size(10**8, 1, 50_000)).most == 15_000_000


def test_memory_of_grouped_stages_ends_growing() -> None:
    cluster = Cluster(clusters=100)
    assert cluster.demand(Size(10**8, 1000, 100, dimension=768)).stated == 12 * 768 * (16_384 + 100)
    assert Assign().demand(Size(10**7, 1000, 1)).rows < 2 * Assign().demand(Size(65_536, 7, 1)).rows
    assert Deduplicate().demand(Size(10**8, 1000, 50_000)).rows <= 65_536


def _taken(amounts: dict[str, float], seconds: float) -> Taken:
    work = {kind: Work(amount) for kind, amount in amounts.items()}
    return Taken(Size(1, 1), Demand(work, 0.0), 1, 1, {}, seconds, 0.0, 0, None, 1)


def test_work_that_was_tried_by_itself_is_taken_off() -> None:
    runs = [_taken({"images": n, "comparisons": n * n}, 3 + 0.01 * n + 1e-4 * n * n) for n in (100.0, 400.0)]
    line = grown(runs, {"comparisons": 1e-4})
    assert (line.once, line.each) == pytest.approx((3, 0.01))


def test_rates_from_elsewhere_name_their_source() -> None:
    rates = load_rates()
    captioner = Recaption(model="m", endpoints=("http://127.0.0.1:1/v1",))
    captioner.register("recaption")
    found = rates.of(captioner)
    assert (found.label, found.per_second * 8 * 86_400) == ("published", pytest.approx(700_000, rel=0.01))
    unknown = Select(nearest=1)
    unknown.register("mine:Stage")
    assert rates.of(unknown).label == "guess"
    every = [rate for known in rates.stages.values() for rate in known]
    assert all(("our guess" in rate.source) == (rate.label == "guess") for rate in every)


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (5, 600, 36_000, 864_000)] == ["5.0 s", "10.0 min", "10.0 h", "10.0 d"]
    assert [size(n) for n in (None, 12, 3_400_000, 5 * 10**13)] == ["?", "12 B", "3.4 MB", "50.0 TB"]
