"""FP8 through Transformer Engine: which recipe a precision names, and what it asks of the sizes. Loads no torch.

In FP8 are the linear layers inside the transformer blocks of encoder and decoder; embeddings, norms, attention, the
connector and the output layer stay in bfloat16.
"""

from __future__ import annotations

import importlib.util
from math import gcd
from typing import TYPE_CHECKING, Any

from megavlm.platform.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

# megatron-core's name of the recipe: the scale of a tensor from earlier steps, from itself, of blocks of it.
RECIPES = {"fp8": "delayed", "fp8_tensorwise": "tensorwise", "fp8_blockwise": "blockwise"}
# What rows and widths have to divide by: cuBLAS wants 16 of what a product sums over, which for a weight's gradient are
# the rows; 1 x 128 and 128 x 128 blocks want whole ones.
MULTIPLES = {"delayed": 16, "tensorwise": 16, "blockwise": 128}


def multiple(config: Any) -> int:
    """What rows have to divide by under this TransformerConfig; 1 without FP8."""
    return MULTIPLES[config.fp8_recipe] if config.fp8 else 1


def options(recipe: str | None) -> dict[str, Any]:
    """TransformerConfig's keys for a recipe. Raises ConfigError where megatron-core would ignore it in silence."""
    if recipe is None:
        return {}
    import torch

    if not torch.cuda.is_available() or importlib.util.find_spec("transformer_engine") is None:
        raise ConfigError(
            "FP8 needs Transformer Engine and a CUDA device; megatron-core would train on in bfloat16 in silence",
            where="precision",
            fix="install the gpu extra on a machine with a GPU, or set precision=bf16",
        )
    return {"fp8": "hybrid", "fp8_recipe": recipe}


def filled_up(tiles: Tensor, tokens: int, of: int) -> Tensor:
    """`tiles` [n, ...] with blank ones behind, as few as make n * tokens rows divide by `of`.

    An encoder's rows are known only once the tiles are shared out, so they can't be asked for beforehand.
    """
    missing = -len(tiles) % (of // gcd(of, tokens))
    return tiles if not missing else _with_blanks(tiles, missing)


def _with_blanks(tiles: Tensor, count: int) -> Tensor:
    import torch

    return torch.cat([tiles, tiles.new_zeros(count, *tiles.shape[1:])])
