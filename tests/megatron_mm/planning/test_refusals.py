"""Layouts that cannot be, planted one by one: each refused for its own reason, with the value, the key and a fix."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from megavlm.megatron_mm.planning.estimate import task_of
from megavlm.megatron_mm.planning.hardware import find_gpu
from megavlm.megatron_mm.planning.refuse import Refusal, check_gpus
from megavlm.megatron_mm.planning.search import judged
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError

D72, SFT = "nvlm-d-72b", "stages.sft"


class Bad(NamedTuple):
    """A layout and what has to be said of it: words of the value, and the key."""

    overrides: str  # of the stage's keys where they begin with a dot
    value: str
    where: str
    recipe: str = D72
    gpus: int = 128
    gpu: str = "h100"


PLANTED = {
    "tensor parallelism over machines": Bad(".parallel.tp=16", "tp 16 does not stay", "parallel.tp"),
    "encoder heads": Bad("model.encoder.dummy_heads=0", "heads 25 + dummy_heads 0", "parallel.tp"),
    "decoder heads": Bad(
        ".parallel.tp=16", "decoder.heads 56 does not divide by parallel.tp 16", "tp", recipe="nvlm-d-34b"
    ),
    "ffn": Bad("model.decoder.ffn=29572", "decoder.ffn 29572 does not divide", "parallel.tp"),
    "connector": Bad("model.connector.hidden=29572", "connector.hidden 29572", "parallel.tp"),
    "query groups of cross-attention": Bad(
        "model.injection.kv_heads=4", "injection.kv_heads 4 does not divide", "parallel.tp", recipe="nvlm-x-72b"
    ),
    "query groups": Bad(
        ".parallel.tp=7 model.encoder.dummy_heads=3 model.encoder.ffn=12803 "
        "model.connector.hidden=20482 model.decoder.ffn=20482",
        "kv_heads 8 and parallel.tp 7: neither divides",
        "parallel.tp",
        recipe="nvlm-d-34b",
        gpus=56,
    ),
    "layers over stages": Bad(".parallel.pp=3", "decoder.layers 80 does not divide", "parallel.pp", gpus=120),
    "layers over chunks": Bad(".parallel.vp=3", "20 does not divide by parallel.vp 3", "parallel.vp"),
    "an uneven first stage": Bad(".parallel.first_stage_layers=78", "2 are left for 3 other", "first_stage_layers"),
    "interleaving without stages": Bad(".parallel.pp=1 .parallel.vp=2", "vp 2", "parallel.vp"),
    "sequence parallel alone": Bad(
        ".parallel.tp=1 .parallel.sequence_parallel=true", "tp is 1", "parallel.sequence_parallel"
    ),
    "rows over tp": Bad(
        ".parallel.sequence_parallel=true .mixture.sequence_length=3204",
        "sequence_length 3204 does not divide by parallel.tp 8",
        SFT,
    ),
    "rows over cp": Bad(
        ".parallel.cp=2 .mixture.sequence_length=3202", "3202 does not divide by 2 x parallel.cp 4", SFT
    ),
    "positions": Bad(".mixture.sequence_length=40000", "max_positions 32768", "sequence_length"),
    "processes": Bad("", "40 processes", "parallel", gpus=40),
    "machines": Bad("", "12 GPUs are no whole machines of 8", "--gpus", gpus=12),
    "nothing to overlap": Bad(".parallel.overlap=true", "one copy of the weights", "parallel.overlap", gpus=32),
    "replicas without packs": Bad("", "256 replicas", "parallel", gpus=8192),
    "an uneven batch": Bad(
        ".mixture.batch.unit=packs .mixture.batch.size=130", "130 packs does not divide by 4", "packs"
    ),
    "blank packs": Bad(
        ".parallel.vp=5 .mixture.batch.unit=packs .mixture.batch.size=24",
        "a replica has 6: 2 blank ones",
        "parallel.vp",
    ),
    "FP8 on a GPU without": Bad(".precision=fp8", "a100-80 multiplies nothing in FP8", "precision", gpu="a100-80"),
    "FP8 after the split": Bad(
        ".precision=fp8 model.decoder.ffn=29600", "29600 / tp 8 = 3700 is no multiple of 16", "precision"
    ),
    "FP8 in blocks": Bad(".precision=fp8_blockwise", "ffn 12800 / tp 8 = 1600 is no multiple of 128", "precision"),
    "aligned patches over cp": Bad(
        ".parallel.cp=2", "context parallelism of 2", "parallel.cp", recipe="eve-7b", gpus=16, gpu="a100-80"
    ),
    "memory for activations": Bad(
        ".parallel.pp=1 .recompute=none",
        "GiB, and a100-40 has 38 GiB",
        "parallel",
        recipe="eagle-x5-34b",
        gpus=64,
        gpu="a100-40",
    ),
    "memory for weights": Bad(".parallel.tp=1 .parallel.pp=1", "h100 has 78 GiB", "parallel"),
}


def refused(bad: Bad) -> ConfigError:
    """What the planner says of it."""
    words = [word if not word.startswith(".") else f"{SFT}{word}" for word in bad.overrides.split()]
    try:
        check_gpus(find_gpu(bad.gpu), bad.gpus)
        task = task_of(load_recipe(bad.recipe, words), "sft")
    except ConfigError as error:
        return error
    made = judged(task, find_gpu(bad.gpu), bad.gpus, task.layout)
    assert isinstance(made, Refusal), made.layout()
    return made.error


@pytest.mark.parametrize("bad", PLANTED.values(), ids=PLANTED)
def test_a_layout_that_cannot_be_is_refused_for_its_own_reason(bad):
    error = refused(bad)
    assert bad.value in error.what
    assert bad.where in (error.where or "") and error.fix


@pytest.mark.parametrize(
    ("recipe", "gpus", "gpu"),
    [(D72, 128, "h100"), ("nvlm-d-34b", 128, "h100"), ("nvlm-x-72b", 128, "h100"), ("eve-7b", 16, "a100-80")],
)
def test_what_they_are_planted_in_is_sound(recipe, gpus, gpu):
    task = task_of(load_recipe(recipe), "sft")
    assert not isinstance(judged(task, find_gpu(gpu), gpus, task.layout), Refusal)


def test_there_are_twenty_and_more():
    assert len({(bad.value, bad.where) for bad in PLANTED.values()}) >= 20
