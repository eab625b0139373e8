"""The ranks that stand for all others, against megatron-core's own numbering of every rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
from megatron.core.parallel_state import RankGenerator

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.costs import MicroBatch
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.data.shares import assign
from megavlm.megatron_mm.planning.contracts import Load
from megavlm.megatron_mm.tracing.distinct import distinct_ranks, pipeline_stage
from megavlm.platform.config import load_recipe


def spec_with(parallel: Parallel) -> StageData:
    spec = StageData.of(load_recipe("nvlm-d-mini"), "sft")
    return replace(spec, stage=spec.stage.model_copy(update={"parallel": parallel}))


def load_with(packs: int) -> Load:
    pack = MicroBatch(1024, 1, 1024**2)
    return Load(packs, packs, pack, pack, 1024.0 * packs, "made up")


@pytest.mark.parametrize(
    ("parallel", "world", "packs", "count"),
    [
        (Parallel(), 1, 2, 1),
        (Parallel(tp=2), 2, 2, 2),
        (Parallel(tp=8, pp=4), 128, 128, 8),
        (Parallel(tp=8, pp=4), 128, 130, 16),
        (Parallel(tp=2, pp=2, cp=2), 24, 5, 8),
        (Parallel(pp=4), 16, 3, 8),
    ],
)
def test_every_stage_share_of_packs_and_edge_is_among_them(
    parallel: Parallel, world: int, packs: int, count: int
) -> None:
    """Every rank's kind, by megatron-core's groups and by how the loader gives out packs, is that of one of them."""
    dp = world // parallel.split
    generator = RankGenerator(tp=parallel.tp, ep=1, dp=dp, pp=parallel.pp, cp=parallel.cp, order="tp-cp-ep-dp-pp")
    place = {
        axis: {rank: group.index(rank) for group in generator.get_ranks(axis) for rank in group}
        for axis in ("tp", "dp", "pp")
    }
    given = [len(mine) for mine in assign([1.0] * packs, dp)]

    def kind(rank: int) -> tuple[int, int]:
        return place["pp"][rank], given[place["dp"][rank]]

    found = distinct_ranks(spec_with(parallel), world, load_with(packs))
    assert len(found) == count == len(set(found)) and found == sorted(found)
    assert {kind(rank) for rank in range(world)} == {kind(rank) for rank in found}
    for edge in (0, parallel.tp - 1):
        assert {kind(r) for r in range(world)} == {kind(r) for r in found if place["tp"][r] == edge}
    assert [pipeline_stage(spec_with(parallel), world, rank) for rank in found] == [place["pp"][r] for r in found]


def test_where_nothing_is_known_of_the_load_the_last_replica_may_differ() -> None:
    assert distinct_ranks(spec_with(Parallel(tp=2)), 8) == [0, 1, 6, 7]
