"""Overlapped sums and gathers change no bit, whatever a rank learns from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from ranks import load

from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.training.overlap import Overlap
from megavlm.platform.errors import MegaVLMError

WORKER = Path(__file__).with_name("overlap_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, on_ranks: Callable[..., None]) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("overlap") / "results.json"
    on_ranks(WORKER, 2, out)
    return json.loads(out.read_text())


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_steps_are_bit_equal_with_overlap_and_without(results: dict[str, Any]) -> None:
    """Replicas with unequal packs, one of them without images in its last pack, and all of them in the third step."""
    for layout in load(WORKER).LAYOUTS:
        plain, overlapped = results[layout]
        assert set(plain["buckets"]) == {1}, layout
        assert (max(overlapped["buckets"]) > 1) == (layout != "dp2, frozen decoder"), layout  # the tower's is one
        for (loss, norm), (wanted, wanted_norm) in zip(overlapped["steps"], plain["steps"], strict=True):
            assert loss == wanted and norm == pytest.approx(wanted_norm, rel=1e-6), layout
        assert overlapped["weights"] == plain["weights"], layout
        assert len({loss for loss, _ in plain["steps"]}) == len(plain["steps"]), layout


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_a_layer_left_out_on_one_rank_and_a_late_gradient_are_summed_rightly(results: dict[str, Any]) -> None:
    assert results["branches"] == pytest.approx([0.0, 0.0, 0.0], abs=1e-5)


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_a_checkpoint_of_several_buckets_goes_on_in_one(results: dict[str, Any]) -> None:
    """The update after it shows whether the optimizer's state was saved as it is: see backend/buckets.py."""
    assert max(results["dp2"][1]["buckets"]) > 1
    assert [loss for loss, _ in results["resumed"]] == [loss for loss, _ in results["dp2"][0]["steps"]]


def wrapped_branch(switches: tuple[str, ...]) -> DistributedDataParallel:
    model = load(WORKER).Branch()
    on = dict.fromkeys(switches, True)
    config = DistributedDataParallelConfig(use_distributed_optimizer=True, bucket_size=70, **on)
    return DistributedDataParallel(config=model.config, ddp_config=config, module=model)


def test_megatron_core_alone_fails_where_a_layer_is_left_out(one_process: BuildContext) -> None:
    """Why overlap.py is there. If this stops failing, see what of it can go."""
    part, x = wrapped_branch(("overlap_grad_reduce",)), torch.ones(1, 8)
    for whole in (True, False):
        part.zero_grad_buffer()
        part(x, whole).sum().backward()
        if whole:
            part.finish_grad_sync()
    with pytest.raises(AssertionError, match="Communication call has not been issued"):
        part.finish_grad_sync()


def test_a_gradient_after_its_sum_began_is_an_error(one_process: BuildContext) -> None:
    part, x = wrapped_branch(("overlap_grad_reduce", "overlap_param_gather", "align_param_gather")), torch.ones(1, 8)
    overlap = Overlap([part], None)
    part.zero_grad_buffer()
    with pytest.raises(MegaVLMError, match=r"shape \(8,?\S*.* after its sum had begun") as error, overlap.step():
        part(x, True).sum().backward()
        part.module.first(x).sum().backward()
    assert error.value.where == "parallel.overlap" and "overlap=false" in error.value.fix
