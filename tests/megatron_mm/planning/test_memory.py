"""Memory by formulas: parameters against the recipes' own counts, and small sums by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.costs import Cost, MicroBatch, Setting
from megavlm.megatron_mm.planning.contracts import Job, Load, Pieces
from megavlm.megatron_mm.planning.hardware import find_gpu
from megavlm.megatron_mm.planning.memory import rank
from megavlm.megatron_mm.planning.pieces import pieces_of
from megavlm.megatron_mm.planning.tower_memory import Tower
from megavlm.platform.config import list_recipes, load_recipe

MICRO = MicroBatch(positions=1024, samples=1, squares=1024**2, tiles=4, visual=0)
LOAD = Load(packs=64, samples=64, of=MICRO, most=MICRO, tokens=64 * 1024, origin="a test")
LAYER = Cost(weights=1000, kept=100.0, passing=60.0, spare=7.0, entrance=10.0)
PIECES = Pieces(
    tower=(Cost(weights=500, kept=30.0, spare=2.0, alone=40.0, part="encoder"), Cost(weights=50, part="connector")),
    embedding=Cost(weights=200),
    layers=(LAYER,) * 8,
    head=Cost(weights=210, kept=400.0, passing=300.0, spare=90.0),
    hidden=1.0,
)


def job(**changes: Any) -> Job:
    told = {
        "stage": "sft",
        "gpu": find_gpu("h100"),
        "world": 8,
        "parallel": Parallel(),
        "dp": 8,
        "micro_batches": 8,
        "precision": "bf16",
        "recompute": "none",
        "train": ("encoder", "connector", "decoder"),
        "load": LOAD,
        "pieces": PIECES,
    }
    return Job(**(told | changes))


def model_of(recipe: str) -> ModelConfig:
    return load_recipe(recipe).section("model")


MODELS = [name for name, path in list_recipes().items() if "megatron_mm" in str(path)]


@pytest.mark.parametrize("recipe", MODELS)
def test_the_pieces_of_a_recipe_have_all_its_parameters(recipe):
    """As `recipes show` counts them, which tests hold against the built modules."""
    model = model_of(recipe)
    made = pieces_of(model, LOAD, Setting(), "none")
    parts = [*made.tower, *made.teacher, made.embedding, *made.layers, made.head, made.objectives]
    assert sum(part.weights for part in parts) == model.parameter_counts()["total"]
    assert sum(each.weights for each in made.added) == model.parameter_counts()["injection"]


def test_weights_gradients_and_moments_are_18_bytes_and_the_state_is_sharded():
    """2 + 4 + (4 + 8) / replicas in bf16; 4 + 4 + 8 / replicas in float32 (Megatron-LM, docs dist_optimizer.md)."""
    numbers = 500 + 50 + 200 + 8 * 1000 + 210
    of = rank(job(), PIECES, Tower(), 0)
    assert (of.weights, of.gradients, of.optimizer) == (2 * numbers, 4 * numbers, 12 * numbers / 8)
    of = rank(job(precision="fp32"), PIECES, Tower(), 0)
    assert (of.weights, of.gradients, of.optimizer) == (4 * numbers, 4 * numbers, 8 * numbers / 8)
    of = rank(job(parallel=Parallel(cp=2), dp=4), PIECES, Tower(), 0)
    assert of.optimizer == 12 * numbers / 8


def test_frozen_parts_have_no_gradients_and_stages_only_their_own():
    of = rank(job(train=("connector",)), PIECES, Tower(), 0)
    assert (of.gradients, of.optimizer) == (4 * 50, 12 * 50 / 8)
    two = job(parallel=Parallel(pp=2), dp=4)
    first, last = (rank(two, PIECES, Tower(), stage) for stage in (0, 1))
    assert first.weights == 2 * (500 + 50 + 200 + 4 * 1000) and last.weights == 2 * (500 + 50 + 210 + 4 * 1000)


def test_a_pipeline_keeps_what_its_schedule_holds():
    """The first of 4 stages keeps 4 micro-batches of 2 layers, and what it sent of each; the last one, of 1, with the
    softmax: then comes the loss, or the last layer's way back without it."""
    four = job(parallel=Parallel(pp=4), dp=2)
    first, last = (rank(four, PIECES, Tower(), stage) for stage in (0, 3))
    assert (first.activations, first.spare) == (4 * (2 * 100 + 1), 7)
    assert (last.activations, last.spare) == (2 * 100 + 1 + 400, 90)


def test_layers_computed_again_keep_their_input_and_need_one_whole_at_a_time():
    again = rank(job(recompute="full"), PIECES, Tower(), 0)
    assert (again.activations, again.spare) == (8 * 10 + 400, 90)
    small = dataclasses.replace(PIECES, head=Cost(weights=210, kept=4.0, spare=9.0))
    again = rank(job(recompute="full"), small, Tower(), 0)
    assert (again.activations, again.spare) == (8 * 10 + 4, 100 + 1 + 7 - 4)


def test_a_frozen_decoder_keeps_what_gradients_pass_through():
    frozen = rank(job(train=("connector",)), PIECES, Tower(), 0)
    assert frozen.activations == 8 * 60 + 300


def test_a_tower_that_learns_keeps_its_share_and_one_that_does_not_nothing():
    blocks = tuple((cost, True) for cost in PIECES.tower)
    learning = Tower(blocks=blocks, share=12, at_once=12, needed=4, tokens=5.0)
    assert learning.kept().activations == 12 * 30 + (12 + 4) * 5
    assert learning.looking().spare == max(12 * 2, 2 * (12 + 4) * 5)
    still = Tower(blocks=tuple((cost, False) for cost in PIECES.tower), share=12, at_once=6, needed=4, tokens=5.0)
    assert still.kept().activations == (12 + 4) * 5 and still.looking().spare == 6 * 40
    assert still.learning().total == 0
