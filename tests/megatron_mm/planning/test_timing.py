"""Step times against hand arithmetic."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.costs import Cost, MicroBatch
from megavlm.megatron_mm.data.amounts import Amounts
from megavlm.megatron_mm.planning.contracts import Gpu, Job, Load, Pieces
from megavlm.megatron_mm.planning.rates import Constants, Runner
from megavlm.megatron_mm.planning.timing import step_time
from megavlm.platform.images import ImageTiles

ALL = Constants(products_bf16=1.0, products_fp8=1.0, links=1.0)
# 989.4 TFLOP/s at 700 W: the rate that power allows is the peak
GPU = Gpu("g", 80e9, bf16=989.4e12, fp8=1978.8e12, bandwidth=1e12, link=100e9, network=10e9, watts=700)
LAYER = Cost(products=989.4e12)  # a second of products in the forward pass


def job(layers=4, micro_batches=8, parallel=None, **of) -> Job:
    micro = MicroBatch(positions=8, samples=1, squares=64)
    load = Load(packs=8, samples=8, of=micro, most=micro, tokens=64, origin="made")
    pieces = of.pop("pieces", Pieces(tower=(), embedding=Cost(), layers=(LAYER,) * layers, head=Cost()))
    parallel = parallel or Parallel()
    known = {"world": parallel.split, "dp": 1, "precision": "bf16", "recompute": "none", "train": ("decoder",)} | of
    return Job(stage="s", gpu=GPU, parallel=parallel, micro_batches=micro_batches, load=load, pieces=pieces, **known)


def test_trained_products_run_three_times_and_frozen_ones_once_or_twice():
    assert step_time(job(), ALL).products == pytest.approx(4 * 8 * 3)
    assert step_time(job(train=("injection",)), ALL).products == pytest.approx(4 * 8 * 2)
    assert step_time(job(train=()), ALL).products == pytest.approx(4 * 8)


def test_full_recomputation_adds_a_forward_pass():
    assert step_time(job(recompute="full"), ALL).products == pytest.approx(4 * 8 * 4)


def test_fp8_products_take_half_the_time_and_convert_what_they_read():
    assert step_time(job(precision="fp8"), ALL).products == pytest.approx(4 * 8 * 3 / 2)
    layer = dataclasses.replace(LAYER, operands=1e12)
    pieces = Pieces(tower=(), embedding=Cost(), layers=(layer,), head=Cost())
    assert step_time(job(1, 1, precision="fp8", pieces=pieces), ALL).moved == pytest.approx(6 / 0.9)


@pytest.mark.parametrize(("pp", "vp", "bubble"), [(1, 1, 0), (4, 1, 3 * 6), (4, 2, 3 * 6 / 2)])
def test_the_bubble_is_p_less_1_micro_batches_over_vp(pp, vp, bubble):
    """Arxiv 2104.04473, section 2.2: (p - 1) / (v m) of the ideal time; a stage of two layers takes 2 x 3 s."""
    time = step_time(job(layers=2 * pp, parallel=Parallel(pp=pp, vp=vp)), ALL)
    assert time.bubble == pytest.approx(bubble)
    assert time.products == pytest.approx(8 * 6)


def test_the_slowest_stage_sets_the_pace():
    """A head as long as a layer on the second of two stages of two layers."""
    pieces = Pieces(tower=(), embedding=Cost(), layers=(LAYER,) * 4, head=LAYER)
    time = step_time(job(parallel=Parallel(pp=2), pieces=pieces), ALL)
    assert (time.products, time.bubble) == (pytest.approx(8 * 9), pytest.approx(6))


def test_sums_over_tensor_parallel_ranks_are_rings():
    """2 (t - 1) / t of 100 GB over 100 GB/s, forward and backward; one of t rounds of it where products hide it."""
    layer = Cost(exchanged=100e9)
    pieces = Pieces(tower=(), embedding=Cost(), layers=(layer,), head=Cost())
    of = job(1, 1, Parallel(tp=4), pieces=pieces)
    assert step_time(of, ALL).tensor == pytest.approx(2 * 1.5)
    assert step_time(dataclasses.replace(of, tp_overlap=True), ALL).tensor == pytest.approx(2 * 1.5 / 4)


def test_ranks_of_a_machine_fetch_together_what_others_hold():
    """80 GB over 16 ranks on two machines: half of it comes through eight adapters of 10 GB/s."""
    assert Runner(job(), ALL).ring(80e9, 16, 1) == pytest.approx(max(80 * 7 / 8 / 100, 40 / 80))
    assert Runner(job(), ALL).ring(80e9, 16, 8) == pytest.approx(80 * 15 / 16 / 10)


def test_gradients_hide_behind_one_micro_batch():
    """Of 40e9 weights 240 GB, half of them through an adapter of 10 GB/s; a micro-batch is 3 s of products, and adds
    its gradients at 0.9 TB/s."""
    layer = dataclasses.replace(LAYER, weights=40e9)
    pieces = Pieces(tower=(), embedding=Cost(), layers=(layer,), head=Cost())
    of = job(1, 4, Parallel(tp=8), pieces=pieces, world=16, dp=2)
    added = 8 * 40 / 900
    assert step_time(dataclasses.replace(of, overlap=False), ALL).data == pytest.approx(6 * 40 / 2 / 10)
    assert step_time(of, ALL).data == pytest.approx(6 * 40 / 2 / 10 - 3 - added)


def test_half_the_watts_leave_the_root_of_half_the_rate():
    weak = dataclasses.replace(job(), gpu=dataclasses.replace(GPU, watts=350))
    assert step_time(weak, ALL).products == pytest.approx(4 * 8 * 3 * 2**0.5)


def test_tiles_are_shared_by_all_processes():
    """56 tiles over 8 processes: of a tile a second of the frozen encoder, and three of what learns."""
    micro = MicroBatch(positions=8, samples=1, squares=64, tiles=7)
    load = Load(packs=8, samples=8, of=micro, most=micro, tokens=64, origin="made")
    tower = (dataclasses.replace(LAYER, part="encoder"), dataclasses.replace(LAYER, part="connector"))
    pieces = Pieces(tower=tower, embedding=Cost(), layers=(LAYER,), head=Cost())
    of = dataclasses.replace(job(1, 1, Parallel(pp=1), pieces=pieces, world=8, dp=8), load=load)
    frozen = dataclasses.replace(of, train=("connector",))
    assert step_time(frozen, ALL).tower == pytest.approx(7 * (1 + 3))
    assert step_time(dataclasses.replace(of, train=("encoder", "connector")), ALL).tower == pytest.approx(7 * 6)


def test_images_are_waited_for_where_cores_decode_more_slowly_than_the_gpus_learn():
    """96,880 images for 14 cores at 34.6 a second are 200 s of decoding, behind 96 s of products."""
    cuts = ((ImageTiles(7, 3, 2), 96_880),)
    amounts = Amounts(0, 0, 8, 8, 64, 64, 512, 64, 512, 7, 0, 0, cuts)
    of = job()
    of = dataclasses.replace(of, load=dataclasses.replace(of.load, amounts=amounts))
    assert step_time(of, ALL).loading == pytest.approx(200 - 96)
    assert step_time(dataclasses.replace(of, recompute="full", micro_batches=32), ALL).loading == 0


@given(st.integers(1, 8), st.integers(1, 64), st.floats(0.1, 1.0))
def test_time_grows_with_work_and_falls_with_rates(layers, micro_batches, part):
    slow = dataclasses.replace(ALL, products_bf16=part)
    assert step_time(job(layers, micro_batches), slow).total >= step_time(job(layers, micro_batches), ALL).total
    assert step_time(job(layers + 1, micro_batches), slow).total > step_time(job(layers, micro_batches), slow).total
