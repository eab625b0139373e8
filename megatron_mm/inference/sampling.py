"""From the logits of one position to the next token: greedy, temperature, top-p."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from megavlm.platform.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose. A temperature of 0 is greedy; `top_p` keeps the fewest tokens that hold that much probability.

    Raises ConfigError for values outside their ranges.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(f"temperature {self.temperature} is negative", where="--temperature", fix="0 is greedy")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p} is not in (0, 1]", where="--top-p", fix="1 keeps every token")


def choose(logits: Tensor, sampling: Sampling, rng: torch.Generator) -> int:
    """Logits [vocab] -> the next token's id. `rng` is a CPU generator: the same seed gives the same text anywhere."""
    if sampling.temperature == 0:
        return int((logits == logits.max()).nonzero()[0])  # of equal logits the smallest id, as in evaluation
    probabilities = torch.softmax(logits.double().cpu() / sampling.temperature, dim=-1)
    return int(torch.multinomial(nucleus(probabilities, sampling.top_p), 1, generator=rng))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """[vocab] -> the same with everything outside the nucleus set to zero, not renormalised.

    The nucleus is the smallest set of most likely tokens whose probabilities sum to at least `top_p`
    (Holtzman et al. 2020, section 3.1); it is never empty.
    """
    ordered, places = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities).scatter(-1, places[before < top_p], ordered[before < top_p])
