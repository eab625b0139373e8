"""On a CUDA device: training steps in every precision, against the loss written out in float32."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training import step as training

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
NO_ENGINE = importlib.util.find_spec("transformer_engine") is None
# FP8 wants the token count and every width in multiples of 16.
FP8_SIZES = {"encoder": {"hidden": 64}, "decoder": {"hidden": 64, "ffn": 64}}


@torch.no_grad()
def written_out(model: torch.nn.Module, pack: PackedBatch) -> float:
    """The loss of one pack from whole logits, in float32."""
    logits = model(pack.to(backend.device()), gather_logits=True)[0].float()
    weight = pack.loss_weights[0].to(logits.device)
    losses = F.cross_entropy(logits, pack.labels[0].to(logits.device), reduction="none")
    return float((losses * weight).sum() / weight.sum())


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        ("fp32", 1e-4),
        ("bf16", 2e-2),
        pytest.param("fp8", 1e-1, marks=pytest.mark.skipif(NO_ENGINE, reason="needs Transformer Engine")),
    ],
)
def test_training_steps(
    one_process: BuildContext,
    tiny_model: Callable[..., ModelConfig],
    tiny_pack: Callable[..., PackedBatch],
    precision: str,
    tolerance: float,
) -> None:
    config, packs = tiny_model(**FP8_SIZES), [tiny_pack(1, lengths=(17, 23, 8)), tiny_pack(2, tiles=0)]
    plain = build_model(config, one_process)
    backend.initialise(plain, seed=4)
    wanted = written_out(plain.to(backend.device()), packs[0])

    model = build_model(config, backend.build_context(Parallel(), precision))
    backend.initialise(model, seed=4)
    wrapped = training.wrap(model, precision)
    optimizer = training.make_optimizer(wrapped, Optimizer(lr=3e-3), precision)
    objective = config.objectives[0].build()
    first = training.train_step(wrapped, optimizer, training.cut([packs[:1]], wrapped.lookers), objective)
    assert first.loss == pytest.approx(wanted, rel=tolerance)
    batch = training.cut([packs], wrapped.lookers)
    losses = [training.train_step(wrapped, optimizer, batch, objective).loss for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
