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
# recipe, stage, processes, pipeline stage, what is shallower
CASES = [
    ("nvlm-d-72b", "sft", 128, 0, ["model.decoder.layers=4", "model.encoder.layers=3"]),
    ("nvlm-d-72b", "sft", 128, 3, ["model.decoder.layers=4", "model.encoder.layers=3"]),
    ("nvlm-x-7b", "sft", 64, 0, ["model.decoder.layers=4", "model.encoder.layers=3", "model.injection.every=2"]),
    ("eve-7b", "sft", 32, 0, ["model.decoder.layers=4"]),
]


@pytest.mark.parametrize(("recipe", "stage", "world", "place", "shallower"), CASES)
def test_formulas_are_within_a_twentieth_of_the_trace(recipe, stage, world, place, shallower):
    spec = StageData.of(load_recipe(recipe, shallower), stage)
    load = load_of(spec)
    trace = trace_rank(spec, place * world // spec.stage.parallel.pp, world, load)
    task = Task.of(spec, load)
    told = ranks(task.job(find_gpu("h100"), world, task.layout), spec.model)[place]
    assert told.total == pytest.approx(trace.peak.total, rel=BOUND)
    kinds = (told.weights, told.gradients, told.optimizer)
    assert kinds == pytest.approx([trace.standing[kind] for kind in ("weights", "gradients", "optimizer")], rel=0.005)
