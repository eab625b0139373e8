"""The ranks that stand for all others, against megatron-core's own numbering of every rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
from megatron.core.parallel_state import RankGenerator

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.data.shares import Grid, Shares, assign
from megavlm.megatron_mm.tracing.distinct import distinct_ranks, pipeline_stage
from megavlm.platform.config import load_recipe


def spec_with(parallel: Parallel) -> StageData:
    spec = StageData.of(load_recipe("nvlm-d-mini"), "sft")
    return replace(spec, stage=spec.stage.model_copy(update={"parallel": parallel}))


LAYOUTS = [
    (Parallel(), 1, 2, 1),
    (Parallel(tp=2), 2, 2, 2),
    (Parallel(tp=8, pp=4), 128, 128, 5),
    (Parallel(tp=8, pp=4), 128, 130, 5),
    (Parallel(tp=2, pp=2, cp=2), 24, 5, 3),
    (Parallel(pp=4), 16, 3, 5),
]


@pytest.mark.parametrize(("parallel", "world", "packs", "count"), LAYOUTS)
def test_every_pipeline_stage_and_every_edge_is_among_them(
    parallel: Parallel, world: int, packs: int, count: int
) -> None:
    """Every rank by megatron-core's groups and by how the loader gives out packs and tiles: none is beyond these."""
    dp = world // parallel.split
    generator = RankGenerator(tp=parallel.tp, ep=1, dp=dp, pp=parallel.pp, cp=parallel.cp, order="tp-cp-ep-dp-pp")
    place = {
        axis: {rank: group.index(rank) for group in generator.get_ranks(axis) for rank in group}
        for axis in ("tp", "dp", "pp", "cp")
    }
    given = assign([1.0] * packs, dp)
    shares = Shares(Grid(dp, parallel.pp, parallel.cp), [[3] * len(mine) for mine in given])
    found = distinct_ranks(spec_with(parallel), world)
    assert len(found) == count

    def facts(rank: int) -> list[int]:
        decoded = shares.decodes(rank // parallel.tp, parallel.tp, rank % parallel.tp)
        return [len(given[place["dp"][rank]]), len(decoded), *(place[axis][rank] for axis in ("tp", "cp", "pp"))]

    every, ours = [[facts(rank) for rank in ranks] for ranks in (range(world), found)]
    for all_values, our_values in zip(zip(*every, strict=True), zip(*ours, strict=True), strict=True):
        assert (min(all_values), max(all_values)) == (min(our_values), max(our_values))
    assert {place["pp"][rank] for rank in found} == set(range(parallel.pp))
    assert [pipeline_stage(spec_with(parallel), world, rank) for rank in found] == [place["pp"][r] for r in found]
