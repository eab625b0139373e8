"""Memory by formulas against a trace of the recipes' own code, which knows none of them.

Width, vocabulary, layout and load are the recipe's own; there are fewer layers, so that a trace takes seconds.
benchmarks/planner_memory.md has the recipes whole.
"""

from __future__ import annotations

import pytest

from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.planning.estimate import Task
from megavlm.megatron_mm.planning.hardware import find_gpu
from megavlm.megatron_mm.planning.load import load_of
from megavlm.megatron_mm.planning.memory import ranks
from megavlm.megatron_mm.tracing.rank import trace_rank
from megavlm.platform.config import load_recipe

BOUND = 0.05
SHALLOW = ["model.decoder.layers=4", "model.encoder.layers=2"]
# recipe, stage, processes, pipeline stage, what is shallower
CASES = [
    ("nvlm-d-72b", "sft", 128, 0, SHALLOW),
    ("nvlm-d-72b", "sft", 128, 3, SHALLOW),
    ("nvlm-x-34b", "sft", 128, 0, [*SHALLOW, "model.injection.every=2"]),
    ("mmfuser-7b", "pretrain", 8, 0, SHALLOW[:1]),
]


@pytest.mark.parametrize(("recipe", "stage", "world", "place", "shallower"), CASES)
def test_formulas_are_within_a_twentieth_of_the_trace(recipe, stage, world, place, shallower):
    spec = StageData.of(load_recipe(recipe, shallower), stage)
    load = load_of(spec)
    trace = trace_rank(spec, place * world // spec.stage.parallel.pp, world, load)
    task = Task.of(spec, load)
    told = ranks(task.job(find_gpu("h100"), world, task.layout), spec.model)[place]
    assert told.total == pytest.approx(trace.peak.total, rel=BOUND)
    assert told.weights + told.gradients + told.optimizer == pytest.approx(sum(trace.standing.values()), rel=0.005)
