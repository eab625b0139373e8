"""Llama 2 and 3 (Touvron et al. 2023, Grattafiori et al. 2024), and Vicuna and Yi, which have its layers."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError

from .base import Decoder


class RopeScaling(Config):
    """Llama 3.1's rotary angles for samples longer than it was first trained on (its config.json's `llama3`).

    Frequencies whose wavelength is above original_positions / low_freq_factor are divided by `factor`, those below
    original_positions / high_freq_factor are kept, and in between they are blended.
    """

    factor: PositiveFloat  # 8 in Llama 3.1, 32 in 3.2
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_positions: PositiveInt = 8192

    @model_validator(mode="after")
    def _ordered(self) -> RopeScaling:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}",
                where="decoder.rope_scaling",
                fix="Llama 3.1 has 1 and 4",
            )
        return self


class Llama(Decoder):
    """No bias anywhere. The members of the family differ in three values that therefore have no default:

    rope_base 1e4, norm_eps 1e-5, max_positions 4096 in Llama 2 and Vicuna 1.5 (2048 and 1e-6 in Vicuna 1.3); 5e5, 1e-5
    and 8192 in Llama 3 (131072 with rope_scaling from 3.1 on); 5e6, 1e-5 and 4096 in Yi.
    """

    name: Literal["llama"] = "llama"
    rope_scaling: RopeScaling | None = None
