"""Which layers a stage holds, against megatron-core's own arithmetic; what it keeps, against a playback and papers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.layout import require_stages
from megavlm.megatron_mm.planning.pipeline import held_layers, in_flight
from megavlm.megatron_mm.planning.timeline import play

LAYOUTS = [
    (8, {"pp": 1}),
    (80, {"pp": 4}),
    (16, {"pp": 4, "vp": 2}),
    (24, {"pp": 2, "vp": 3}),
    (14, {"pp": 4, "first_stage_layers": 3, "last_stage_layers": 1}),
    (13, {"pp": 4, "first_stage_layers": 1}),
    (13, {"pp": 4, "last_stage_layers": 4}),
    (20, {"pp": 4, "vp": 2, "first_stage_layers": 2, "last_stage_layers": 6}),
    (5, {"pp": 2, "first_stage_layers": 3, "last_stage_layers": 2}),
]


@pytest.mark.parametrize(("layers", "layout"), LAYOUTS)
def test_stages_hold_what_megatron_core_builds_there(layers, layout):
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    parallel = Parallel(**layout)
    require_stages(layers, parallel)
    config = TransformerConfig(
        num_layers=layers,
        hidden_size=8,
        num_attention_heads=1,
        pipeline_model_parallel_size=parallel.pp,
        pipeline_dtype=torch.float32,
        virtual_pipeline_model_parallel_size=parallel.vp if parallel.vp > 1 else None,
        num_layers_in_first_pipeline_stage=parallel.first_stage_layers,
        num_layers_in_last_pipeline_stage=parallel.last_stage_layers,
    )
    for stage, chunks in enumerate(held_layers(parallel, layers)):
        for number, chunk in enumerate(chunks):
            vp_stage = number if parallel.vp > 1 else None
            first = get_transformer_layer_offset(config, vp_stage, stage)
            assert chunk == [*range(first, first + get_num_layers_to_build(config, vp_stage, stage))]


@given(pp=st.integers(2, 6), vp=st.integers(1, 4), groups=st.integers(1, 4), stage=st.integers(0, 5))
def test_a_stage_keeps_as_many_as_a_playback_of_the_schedule_has_between_their_passes(pp, vp, groups, stage):
    """A micro-batch is kept from the start of its forward pass to the end of its backward pass."""
    parallel, batches, stage = Parallel(pp=pp, vp=vp), pp * groups, stage % pp
    events = play([[1.0] * vp] * pp, [[2.0] * vp] * pp, batches)
    own = [event for event in events if event.stage == stage]
    begun = {event.of[:2]: event.start for event in own if not event.of.backward}
    ended = {event.of[:2]: event.end for event in own if event.of.backward}
    alive = [sum(begun[key] <= at < ended[key] for key in begun) for at in begun.values()]
    assert sum(in_flight(parallel, batches, stage)) == max(alive)


def test_what_is_kept_is_what_the_papers_say():
    """1F1B: p - stage (arXiv 2104.04473, 2.2.1). The first interleaved stage: L (1 + (p - 1) / (p m)) layers' worth
    (arXiv 2205.05198, 4.2.3), which is p m + p - 1 chunks."""
    assert [in_flight(Parallel(pp=4), 8, stage) for stage in range(4)] == [[4], [3], [2], [1]]
    assert [in_flight(Parallel(pp=4), 2, stage) for stage in range(4)] == [[2], [2], [2], [1]]
    assert sum(in_flight(Parallel(pp=4, vp=3), 16, 0)) == 4 * 3 + 3
    assert in_flight(Parallel(), 64, 0) == [1]
