"""Qwen2 and Qwen2.5 (Yang et al. 2024): queries, keys and values have a bias."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from .base import Decoder


class Qwen2(Decoder):
    """Qwen2-72B: 80 layers, 8192, 64 heads, 8 kv heads, 29568."""

    qkv_bias: ClassVar[bool] = True

    name: Literal["qwen2"] = "qwen2"
    max_positions: PositiveInt = 32768
    rope_base: float = 1e6
    norm_eps: float = 1e-6
