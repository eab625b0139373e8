"""Two tensor-parallel ranks see what one process sees, and read its checkpoints, as it reads theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(200)]
TOWERS = ["internvit", "clip", "siglip", "mixture", "llava_hr"]
SPLITS = ["6B with dummy heads", "300M"]


@pytest.fixture(scope="module")
def folder(
    worker: ModuleType, tmp_path_factory: pytest.TempPathFactory, on_ranks: Callable[..., None]
) -> Iterator[Path]:
    """one/NAME and two/NAME: checkpoints of one process and of two; results.json: what the two say."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.set_num_threads(1)
    backend.init_distributed(Parallel(), seed=1)
    for name in TOWERS:
        worker.save(worker.tower(name, Parallel()), folder / "one" / name)
    on_ranks(Path(str(worker.__file__)), 2, folder, seconds=150)
    yield folder
    backend.shutdown()


@pytest.fixture
def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("case", SPLITS)
def test_split_heads_give_the_published_features(worker: ModuleType, told: dict[str, Any], case: str) -> None:
    heads = worker.CASES[case]["heads"]
    wanted = worker.statement(worker.published(case), worker.tiles(), heads).flatten(0, 1).float()
    torch.testing.assert_close(torch.tensor(told["features"][case]), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_two_ranks_read_what_one_process_wrote(told: dict[str, Any], name: str) -> None:
    """And draw the same first weights: both are compared with those."""
    assert told["towers"][name]["alike"]


@pytest.mark.parametrize("name", TOWERS)
def test_one_process_reads_what_two_ranks_wrote(worker: ModuleType, folder: Path, name: str) -> None:
    assert worker.loads_alike(worker.tower(name, Parallel()), folder / "two" / name)


@pytest.mark.parametrize("name", TOWERS)
def test_visual_tokens_are_the_same(worker: ModuleType, folder: Path, told: dict[str, Any], name: str) -> None:
    values = worker.tower(name, Parallel())(worker.tiles()).values.detach()
    torch.testing.assert_close(torch.tensor(told["towers"][name]["values"]), values, rtol=1e-5, atol=1e-5)
