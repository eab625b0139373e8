"""How the experts' modules come to be: without values, which are drawn or read afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def without_values(make: Callable[[], Net], dtype: torch.dtype) -> Net:
    """The module that `make` builds, its weights of `dtype` on the default device, whatever their memory holds.

    `make` runs on the meta device, since there neither torch nor a published class draws weights for nothing. What it
    notes on a parameter (`init_std`) is lost, and so is what it computes into a buffer. Imports don't belong into it: a
    module's own tensors would be on the meta device for good.
    """
    with torch.device("meta"):
        module = make()
    return module.to(dtype).to_empty(device=torch.get_default_device())
