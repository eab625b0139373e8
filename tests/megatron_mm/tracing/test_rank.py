"""A rank's trace against arithmetic: what stands between steps, and which micro-batches are kept at once."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.planning.load import load_of
from megavlm.megatron_mm.tracing import rank as tracing
from megavlm.megatron_mm.tracing.contracts import RankTrace
from megavlm.platform.config import load_recipe

SHORT = ["stages.sft.mixture.sequence_length=256", "stages.sft.precision=bf16", "stages.sft.mixture.packs_per_batch=8"]


def trace(parallel: str, rank: int = 0, world: int = 1, *changes: str) -> RankTrace:
    recipe = load_recipe("nvlm-d-mini", [*SHORT, f"stages.sft.parallel={parallel}", *changes])
    spec = StageData.of(recipe, "sft")
    return tracing.trace_rank(spec, rank, world, load_of(spec))


def test_what_stands_is_two_bytes_of_weights_four_of_gradients_and_twelve_of_the_optimizer() -> None:
    """Mixed precision by the book (ZeRO, arXiv 1910.02054, 3.1), the twelve over two replicas; padded by little."""
    found = trace("{tp: 1}", 1, 2)
    numbers = 1_327_264  # the recipe's own count
    assert found.parameters == pytest.approx(numbers, rel=0.02), "the vocabulary is padded"
    for kind, each in (("weights", 2), ("gradients", 4), ("optimizer", 6)):
        assert found.standing[kind] == pytest.approx(each * found.parameters, rel=0.02), kind  # type: ignore[index]
    assert found.standing["activations"] == 0


def test_everything_that_was_replaced_is_back() -> None:
    before = torch.nn.Module._apply, torch.tensor, F.rms_norm
    trace("{tp: 1}")
    with pytest.raises(Exception, match="divide"):
        trace("{tp: 2}", 0, 3)
    assert (torch.nn.Module._apply, torch.tensor, F.rms_norm) == before
    assert not dist.is_initialized()
    assert float(torch.zeros(())) == 0.0


def test_more_micro_batches_than_fill_the_pipeline_need_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out would not have raised the peak: all eight have the same, to within one small tensor."""
    pipeline = ("{tp: 1, pp: 2, first_stage_layers: 1}", 0, 2)
    few = trace(*pipeline)
    monkeypatch.setattr(tracing, "enough", lambda parallel, stage: 8)
    every = trace(*pipeline)
    assert few.peak.total == pytest.approx(every.peak.total, rel=5e-3)
    monkeypatch.setattr(tracing, "enough", lambda parallel, stage: 1)
    assert trace(*pipeline).peak.total < 0.95 * few.peak.total, "and one alone does not fill it"
