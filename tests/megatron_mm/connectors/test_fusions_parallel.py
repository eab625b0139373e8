"""Two tensor-parallel ranks make the same first weights, tokens and gradients of feature maps as one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import load

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel

WORKER = Path(__file__).with_name("fusion_worker.py")
CASES = [
    "mlp", "mlp of one layer", "mlp of three", "channel_concat", "sequence_append", "windows",
    "concat", "average", "weighted", "fpn", "mmfuser", "mmfuser global", "mmfuser linear_sra", "deformable",
]  # fmt: skip
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    """What one process tells, by case."""
    worker = load(WORKER)
    torch.set_num_threads(1)
    told = worker.run_all(Parallel())
    backend.shutdown()
    return told


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, on_ranks: Callable[..., None]) -> dict[str, Any]:
    """What two ranks tell."""
    out = tmp_path_factory.mktemp("fusions") / "results.pt"
    on_ranks(WORKER, 2, out, seconds=150)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_do_as_one_process(one: dict[str, Any], two: dict[str, Any], case: str) -> None:
    assert one[case].keys() == two[case].keys()
    for what, wanted in one[case].items():
        torch.testing.assert_close(
            two[case][what], wanted, rtol=1e-5, atol=1e-5, msg=lambda told, of=what: f"{of}: {told}"
        )


def test_every_case_of_the_worker_is_compared(one: dict[str, Any]) -> None:
    assert set(one) == set(CASES)
