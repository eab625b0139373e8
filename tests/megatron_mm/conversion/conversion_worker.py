"""What the ranks of test_layouts_convert.py run: every import loaded on every layout of two processes, and saved.

Also the small models that the tests of conversions share.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from safetensors.torch import save_file

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.forked import as_result, minded
from megavlm.megatron_mm.checkpoints.listing import checkpoint_path
from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.conversion.start import fill_parts
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.runs import RunFolder

LAYOUTS: dict[str, dict[str, int]] = {"tp1": {}, "tp2": {"tp": 2}, "pp2": {"pp": 2}}
LENGTH, STAGE = 19, "language"
SIGHT = {"image_size": 28, "patch_size": 7, "layers": 2, "hidden": 48, "heads": 4, "ffn": 64}
TEXT = {"layers": 2, "hidden": 48, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 96, "max_positions": 64}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 16}
CASES: dict[str, dict[str, Any]] = {
    "qwen2, internvit": {
        "decoder": {"name": "qwen2", **TEXT},
        "encoder": {"name": "internvit", **SIGHT, "dummy_heads": 0},
    },
    "llama 3.1, internvit with dummy heads": {
        "decoder": {
            "name": "llama", **TEXT, "rope_base": 5e5, "norm_eps": 1e-5, "tied": True, "rope_scaling": SCALING,
        },
        "encoder": {"name": "internvit", **SIGHT, "heads": 3, "dummy_heads": 1},
    },
    "yi, internvit 300M": {
        "decoder": {"name": "llama", **TEXT, "vocab": 97, "rope_base": 5e6, "norm_eps": 1e-5},
        "encoder": {
            "name": "internvit", **SIGHT, "dummy_heads": 0, "norm": "layer", "qk_norm": False, "qkv_bias": True,
        },
    },
    "vicuna, clip": {
        "decoder": {"name": "llama", **TEXT, "kv_heads": 4, "rope_base": 1e4, "norm_eps": 1e-5},
        "encoder": {"name": "clip", **SIGHT, "layers": 3},
    },
    "qwen2 tied, siglip": {
        "decoder": {"name": "qwen2", **TEXT, "tied": True},
        "encoder": {"name": "siglip", **SIGHT, "layer": -1},
    },
}  # fmt: skip


def model_config(case: str) -> ModelConfig:
    shared = {"tiling": {"tile": 28}, "connector": {"name": "pixel_shuffle_mlp", "hidden": 64}, "injection": "inline"}
    return ModelConfig.parse({**shared, **CASES[case]})


def tokens() -> torch.Tensor:
    return torch.randint(0, 96, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def tiles() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 28, 28), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def pack() -> PackedBatch:
    ends, nothing = torch.tensor([0, LENGTH], dtype=torch.int32), torch.zeros(0, 3, 28, 28, dtype=torch.uint8)
    places, weights = torch.zeros(0, dtype=torch.long), torch.ones(1, LENGTH)
    return PackedBatch(tokens(), None, weights, torch.arange(LENGTH)[None], ends, nothing, places)


@torch.no_grad()
def logits(model: VisionLanguageModel, parallel: Parallel) -> torch.Tensor | None:
    """[s, vocab] on the last pipeline stage, None before."""
    (stage,) = model.stages
    if parallel.pp > 1 and not stage.pre_process:
        before = torch.empty(LENGTH, 1, model.spec.decoder.hidden)
        dist.recv(before, src=dist.get_rank() - 1)
        stage.set_input_tensor([before])
    out = stage(pack(), gather_logits=True)
    if not stage.post_process:
        dist.send(out.contiguous(), dst=dist.get_rank() + 1)
        return None
    return out[0]


def save(model: VisionLanguageModel, folder: Path) -> None:
    """As training does it."""
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelSaveStrategyWrapper(TorchDistSaveShardedStrategy("torch_dist", 1, 1), replicas, True)
    calls = AsyncCallsQueue()
    request = dist_checkpointing.save(model.sharded_state_dict(), str(folder), strategy, async_sharded_save=True)
    calls.schedule_async_request(minded(request))
    calls.maybe_finalize_async_calls(blocking=True)


def run_case(folder: Path, name: str, case: str, layout: str) -> None:
    parallel = Parallel(**LAYOUTS[layout])
    backend.init_distributed(parallel, seed=1)
    model = build_model(model_config(case), backend.build_context(parallel))
    backend.initialise(model, seed=3)
    fill_parts(model, checkpoint_path(RunFolder(folder / name / "import"), STAGE, 0))
    told, found = folder / name / layout, logits(model, parallel)
    seen = model.tower.encoder(tiles())[0].values.detach()
    if dist.get_rank() == dist.get_world_size() - 1:
        assert found is not None
        told.mkdir(parents=True)
        save_file({"logits": found.contiguous(), "features": seen.contiguous()}, told / "told.safetensors")
    dist.barrier()
    save(model, checkpoint_path(RunFolder(told), STAGE, 1))


def main(folder: Path) -> None:
    as_result()
    for number, case in enumerate(CASES):
        for layout in LAYOUTS:
            run_case(folder, f"case-{number}", case, layout)
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
