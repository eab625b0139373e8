"""Each CPU seam is needed: without it, what it is for fails. (`scatter` needs two processes: test_parallel.py.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.optimizer import clip_grads, optimizer
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend import cpu
from megavlm.megatron_mm.checkpoints.forked import as_result
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the seams are for machines without CUDA")

RESUMING = [
    "current_device", "synchronize", "get_rng_state", "factories_optimizer", "factories_clip", "factories_utils",
    "factories_schedules", "tensor_type", "tensor_cuda", "adam", "adam_flag", "adam_distributed", "adam_have",
]  # fmt: skip
STREAMS = ["manual_seed", "tracker_get", "tracker_set"]
BY_ITSELF = ["scatter", "adam_apex"]


def test_every_seam_has_its_test() -> None:
    assert sorted(RESUMING + STREAMS + BY_ITSELF) == sorted(seam.name for seam in cpu.SEAMS)


@pytest.fixture
def resume(
    one_process: BuildContext,
    tiny_model: Callable[..., ModelConfig],
    tiny_pack: Callable[..., PackedBatch],
    tmp_path: Path,
) -> Callable[[], tuple[list[float], list[float]]]:
    """Train in bfloat16 with the distributed optimizer, save, train two steps, go back, train them again."""

    def run() -> tuple[list[float], list[float]]:
        parallel = Parallel()
        backend.init_distributed(parallel, seed=1)
        config = tiny_model(decoder={"tied": True})
        model = build_model(config, backend.build_context(parallel, "bf16"))
        backend.initialise(model, seed=5)
        wrapped = wrapping.wrap(model, "bf16")
        optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-2), "bf16")

        def two_steps() -> list[float]:
            loss = config.objectives[0].build()
            batches = [training.cut([[tiny_pack(seed)]], wrapped) for seed in (2, 3)]
            return [training.train_step(wrapped, optimizer, batch, loss).loss for batch in batches]

        two_steps()
        as_result()
        dist_checkpointing.save(state(model, optimizer, loading=False), str(tmp_path))
        straight = two_steps()
        loaded = dist_checkpointing.load(state(model, optimizer, loading=True), str(tmp_path))
        model.load_parts(loaded["model"])
        with torch.no_grad():
            optimizer.load_state_dict(loaded["optimizer"])
        return straight, two_steps()

    return run


def state(model: Any, optimizer: Any, loading: bool) -> dict[str, Any]:
    weights = model.sharded_state_dict()
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    return {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(weights, is_loading=loading, metadata=metadata),
    }


def test_training_resumes_bit_equal(resume: Callable[[], tuple[list[float], list[float]]]) -> None:
    straight, again = resume()
    assert straight == again and straight[0] != straight[1]


@pytest.mark.parametrize("name", RESUMING)
def test_without_it_training_or_resuming_fails(
    resume: Callable[[], tuple[list[float], list[float]]], name: str
) -> None:
    with cpu.without(name), pytest.raises((AssertionError, TypeError, KeyError)):
        resume()


def stream_is_apart() -> bool:
    """Whether the model-parallel stream draws other numbers, and leaves the default stream where it was."""
    backend.seed_everything(3)
    plain = torch.rand(4)
    backend.seed_everything(3)
    with get_cuda_rng_tracker().fork():
        forked = torch.rand(4)
    return torch.equal(torch.rand(4), plain) and not torch.equal(forked, plain)


def test_streams(one_process: BuildContext) -> None:
    assert stream_is_apart()


@pytest.mark.parametrize("name", STREAMS)
def test_without_it_the_random_streams_are_one(one_process: BuildContext, name: str) -> None:
    with cpu.without(name):
        try:
            apart = stream_is_apart()
        except (AssertionError, RuntimeError):
            apart = False
    assert not apart


def steps_saved(tiny_model: Callable[..., ModelConfig], tiny_pack: Callable[..., PackedBatch]) -> list[int | None]:
    """The step each parameter group would be saved with, one group being empty on this rank."""
    parallel = Parallel()
    config = tiny_model()
    wrapped = wrapping.wrap(build_model(config, backend.build_context(parallel)))
    backend.initialise(wrapped.model, seed=1)
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-2))
    optimizer.chained_optimizers[0].optimizer.param_groups[1]["params"].clear()
    training.train_step(wrapped, optimizer, training.cut([[tiny_pack()]], wrapped), config.objectives[0].build())
    groups = optimizer.chained_optimizers[0].state_dict()["optimizer"]["param_groups"]
    return [group.get("step") for group in groups]


def test_an_empty_group_is_saved_with_the_others_step(
    one_process: BuildContext, tiny_model: Callable[..., ModelConfig], tiny_pack: Callable[..., PackedBatch]
) -> None:
    assert steps_saved(tiny_model, tiny_pack) == [1, 1]
    with cpu.without("adam_apex"):
        assert steps_saved(tiny_model, tiny_pack) == [1, None]


def test_a_type_name_has_two_spellings() -> None:
    name = torch.zeros(1).type()
    assert name == "torch.FloatTensor" and name == "torch.cuda.FloatTensor" and name != "torch.HalfTensor"
    assert name in ["torch.cuda.HalfTensor", "torch.cuda.FloatTensor"] and {name: 1}["torch.FloatTensor"] == 1
    assert torch.ones(2).type(torch.int64).dtype is torch.int64


def test_installed_cuda_kernels_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Transformer Engine is installed on a machine without a GPU: megatron-core has taken its kernels."""

    def kernel(*args: Any) -> None:
        raise RuntimeError("no CUDA driver")

    for seam in cpu.FUSED_SEAMS:
        monkeypatch.setattr(*seam.holder(), kernel)
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    with pytest.raises(RuntimeError, match="no CUDA driver"):
        clip_grads.get_grad_norm_fp32(gradients, grad_stats_parallel_group=None)
    undo = [seam.install() for seam in cpu.FUSED_SEAMS]
    try:
        assert clip_grads.l2_norm_impl(0, None, [gradients], False)[0] == 5.0
        copied = [torch.zeros(2), torch.zeros(1)]
        optimizer._multi_tensor_copy_this_to_that(gradients, copied, torch.tensor([0]))
        assert all(torch.equal(here, there) for here, there in zip(gradients, copied, strict=True))
    finally:
        for restore in undo:
            restore()
