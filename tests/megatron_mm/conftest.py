"""Fixtures of the training room's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch

sys.path.insert(0, str(Path(__file__).parent))  # for ranks.py, also in the processes that it starts


@pytest.fixture(scope="session")
def on_ranks() -> Iterator[Callable[..., None]]:
    """`on_ranks(script, processes, *words, seconds=400)`: see ranks.py. Started by the first test that asks."""
    from ranks import Ranks

    ranks = Ranks()
    yield ranks.run
    ranks.close()


@pytest.fixture
def one_process() -> Iterator[BuildContext]:
    """megatron-core's process groups over this process alone, and the context to build under."""
    torch.set_num_threads(1)
    backend.init_distributed(Parallel(), seed=1)
    yield backend.build_context(Parallel())
    backend.shutdown()


@pytest.fixture
def tiny_model() -> Callable[..., ModelConfig]:
    """`tiny_model(encoder={...}, decoder={...})`: a model of 4 visual tokens per tile of 28 pixels."""

    def make(encoder: dict[str, Any] | None = None, decoder: dict[str, Any] | None = None) -> ModelConfig:
        sight = {"image_size": 28, "patch_size": 7, "layers": 2, "hidden": 32, "heads": 4, "ffn": 64}
        language = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 96}
        return ModelConfig.parse(
            {
                "tiling": {"tile": 28},
                "encoder": {"name": "internvit", **sight, **(encoder or {})},
                "connector": {"name": "pixel_shuffle_mlp", "hidden": 48},
                "injection": {"name": "inline"},
                "decoder": {"name": "qwen2", **language, **(decoder or {})},
            }
        )

    return make


@pytest.fixture
def tiny_pack() -> Callable[..., PackedBatch]:
    """`tiny_pack(seed, lengths, tiles)`: samples of these lengths, the tiles' 4 tokens each from position 2 on."""

    def make(seed: int = 0, lengths: tuple[int, ...] = (17, 23, 8), tiles: int = 3) -> PackedBatch:
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 96, (1, sum(lengths)), generator=draw)
        return PackedBatch(
            tokens=tokens,
            labels=tokens.roll(-1, 1),
            loss_weights=torch.rand(1, sum(lengths), generator=draw),
            position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
            tiles=torch.randint(0, 256, (tiles, 3, 28, 28), generator=draw, dtype=torch.uint8),
            visual_index=torch.arange(2, 2 + 4 * tiles),
        )

    return make
