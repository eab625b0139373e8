"""A stage's deterministic mode: the same bits again from the same layout, machines and versions. Loads no torch.

torch, cuBLAS, NCCL and Transformer Engine are told apart from each other, all but torch by the environment, which they
read once: a rank sets it before it loads torch. megatron-core's own switch follows torch's (transformer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from megavlm.platform.errors import ConfigError

if TYPE_CHECKING:
    from ..config import Stages

# What each may be; the first is what we set. NCCL: without a fixed algorithm it may add up inside the switches (NVLS),
# in any order. A ring is what it uses for large messages anyway.
ALLOWED = {
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NCCL_ALGO": ("Ring", "Tree", "CollnetDirect", "CollnetChain", "^NVLS"),
}


def variables(stages: Stages, environ: Mapping[str, str]) -> dict[str, str]:
    """What a rank's environment needs, where any stage is deterministic: all of them share its processes."""
    if not any(stage.deterministic for stage in stages.root.values()):
        return {}
    return {name: environ.get(name, values[0]) for name, values in ALLOWED.items()}


def require_environment(where: str, environ: Mapping[str, str]) -> None:
    """Raises ConfigError where the environment asks for what is not deterministic."""
    for name, values in ALLOWED.items():
        if environ.get(name, values[0]) not in values:
            raise ConfigError(
                f"deterministic, and the environment says {name}={environ[name]}",
                where=f"{where}.deterministic",
                fix=f"unset {name}, or set it to {' or '.join(values)}",
            )


def switch(on: bool) -> None:
    """torch's part; what it has no deterministic implementation of then raises, with its name."""
    import torch

    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    if on:
        torch.backends.cudnn.benchmark = False
