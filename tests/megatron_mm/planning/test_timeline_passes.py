"""Seconds of a pipeline's passes: by hand from costs that take one second each, and against the step's."""

from __future__ import annotations

from dataclasses import fields

import pytest

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.costs import Cost, MicroBatch
from megavlm.megatron_mm.planning.contracts import Job, Load, Pieces, Recompute
from megavlm.megatron_mm.planning.hardware import find_gpu
from megavlm.megatron_mm.planning.passes import pass_seconds, timeline
from megavlm.megatron_mm.planning.timeline import play, total
from megavlm.megatron_mm.planning.timing import Constants, Runner, step_time

ALL_OF_IT = Constants(**{field.name: 1.0 for field in fields(Constants)})


def job(parallel: Parallel, recompute: Recompute = "none", layers: int = 8, micro_batches: int = 8) -> Job:
    """Every layer does a second of products in its forward pass, embedding and head two each."""
    pack = MicroBatch(128, 1, 128**2)
    load = Load(micro_batches, micro_batches, pack, pack, 128.0 * micro_batches, "made up")
    gpu = find_gpu("h100")
    second = Runner(_made(gpu, parallel, recompute, micro_batches, load, Pieces((), Cost(), (), Cost())), ALL_OF_IT)
    layer = Cost(products=second.product_rate(""))
    pieces = Pieces((), layer.times(2), (layer,) * layers, layer.times(2))
    return _made(gpu, parallel, recompute, micro_batches, load, pieces)


def _made(gpu, parallel, recompute, micro_batches, load, pieces):
    return Job("sft", gpu, parallel.split, parallel, 1, micro_batches, "bf16", recompute, ("decoder",), load, pieces)


def test_embedding_and_head_belong_to_the_first_and_the_last_chunk() -> None:
    forward, backward = pass_seconds(job(Parallel(pp=2, vp=2)), ALL_OF_IT)
    assert forward == [pytest.approx([4, 2]), pytest.approx([2, 4])]
    assert backward == [pytest.approx([8, 4]), pytest.approx([4, 8])]


def test_what_is_computed_again_is_part_of_the_backward_pass() -> None:
    forward, backward = pass_seconds(job(Parallel(pp=4, first_stage_layers=1, last_stage_layers=3), "full"), ALL_OF_IT)
    assert [chunk for (chunk,) in forward] == pytest.approx([1 + 2, 2, 2, 3 + 2])
    assert [chunk for (chunk,) in backward] == pytest.approx([3 + 4, 6, 6, 9 + 4])


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_without_a_pipeline_all_passes_are_the_step_s_work(recompute: Recompute) -> None:
    alone = job(Parallel(), recompute)
    told = step_time(alone, ALL_OF_IT)
    events, shown = timeline(alone, ALL_OF_IT)
    lasted = sum(event.end - event.start for event in events) / shown * alone.micro_batches
    assert lasted == pytest.approx(told.products + told.mixing + told.moved + told.tensor)


@pytest.mark.parametrize(
    "parallel", [Parallel(pp=4), Parallel(pp=4, vp=2), Parallel(pp=4, first_stage_layers=10, last_stage_layers=14)]
)
def test_the_bubble_of_the_step_s_formula_is_that_of_the_schedule_played(parallel: Parallel) -> None:
    """Within 3 % where the ends weigh what two layers of 64 do; with chunks of one layer it tells 9 % too little."""
    of = job(parallel, layers=64, micro_batches=16)
    told = step_time(of, ALL_OF_IT)
    played = total(play(*pass_seconds(of, ALL_OF_IT), of.micro_batches))
    assert told.products + told.mixing + told.moved + told.tensor + told.bubble == pytest.approx(played, rel=0.03)


def test_only_as_many_micro_batches_are_drawn_as_show_how_it_goes_on() -> None:
    events, shown = timeline(job(Parallel(pp=2), micro_batches=100), ALL_OF_IT)
    assert shown == 8 and len(events) == 2 * 2 * 8
