"""One training step against its formula, differentiated by plain autograd."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping


def formula(model: VisionLanguageModel, packs: Sequence[PackedBatch]) -> Tensor:
    """sum(weight * cross entropy) / sum(weight) over all packs, places without a label left out."""
    total, weight = torch.zeros(()), torch.zeros(())
    for pack in packs:
        losses = F.cross_entropy(model(pack, gather_logits=True)[0], pack.labels[0], reduction="none")
        learnt = (pack.labels[0] != -100) * pack.loss_weights[0]
        total, weight = total + (losses * learnt).sum(), weight + learnt.sum()
    return total / weight


@pytest.fixture
def packs(tiny_pack: Callable[..., PackedBatch]) -> list[PackedBatch]:
    """With images and without, and one with hardly a target: a mean of means would be far off."""
    made = [tiny_pack(1), tiny_pack(2, tiles=0), tiny_pack(3)]
    made[2].labels[0, 3:] = -100
    made[0].labels[0, 2:14] = -100
    return made


def test_loss_gradient_and_update(
    one_process: BuildContext, tiny_model: Callable[..., ModelConfig], packs: list[PackedBatch]
) -> None:
    config = tiny_model()
    plain, model = build_model(config, one_process), build_model(config, one_process)
    for each in (plain, model):
        backend.initialise(each, seed=4)
    loss = formula(plain, packs)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in plain.parameters()]).norm()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    decayed = [p for p in plain.parameters() if p.dim() > 1]
    vectors = [p for p in plain.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-4).step()

    wrapped = wrapping.wrap(model)
    options = Optimizer(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-4, clip=0.5)
    optimizer = wrapping.make_optimizer(wrapped, options)
    done = training.train_step(wrapped, optimizer, training.cut([packs], wrapped), config.objectives[0].build())
    assert done.loss == pytest.approx(loss.item(), abs=1e-5)
    assert done.grad_norm == pytest.approx(norm.item(), rel=1e-4) and norm > 0.5  # so that clipping did something
    assert (done.tokens, done.targets, done.updated) == (144, 36 + 48 + 3, True)
    ours = dict(wrapped.model.named_parameters())
    for name, p in plain.named_parameters():
        torch.testing.assert_close(ours[name], p, rtol=0, atol=1e-5, msg=name)


def test_bfloat16_steps(
    one_process: BuildContext, tiny_model: Callable[..., ModelConfig], packs: list[PackedBatch]
) -> None:
    config, layout = tiny_model(), Parallel()
    model = build_model(config, backend.build_context(layout, "bf16"))
    backend.initialise(model, seed=4)
    wanted = formula(model, packs).item()
    wrapped = wrapping.wrap(model, "bf16")
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=3e-3), "bf16")
    batch, objective = training.cut([packs], wrapped), config.objectives[0].build()
    losses = [training.train_step(wrapped, optimizer, batch, objective).loss for _ in range(8)]
    assert losses[0] == pytest.approx(wanted, abs=2e-2) and losses[-1] < losses[0] - 0.1
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("overlap", [False, True])
def test_nothing_of_a_model_is_left_when_the_next_layout_begins(
    one_process: BuildContext, tiny_model: Callable[..., ModelConfig], packs: list[PackedBatch], overlap: bool
) -> None:
    """The next stage is built where it stood: megatron-core's own hooks would keep weights, gradients and buffers."""
    config = tiny_model()
    wrapped = wrapping.wrap(build_model(config, one_process), overlap=overlap)
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=1e-3))
    training.train_step(wrapped, optimizer, training.cut([packs], wrapped), config.objectives[0].build())
    held = [weakref.ref(part) for part in (*wrapped.trained, *wrapped.settled().parameters())]
    assert all(part() is not None for part in held) and len(held) > 10
    del wrapped, optimizer
    backend.init_distributed(Parallel(), seed=1)
    assert not [part() for part in held if part() is not None]
