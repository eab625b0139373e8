"""The GPUs that a plan can be made for, by name: gpus.yaml. Loads no torch."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megavlm.platform.errors import ConfigError, did_you_mean

from ..training.flops import PEAKS
from .contracts import Gpu

GIB, GIGA, TERA = 2**30, 1e9, 1e12


@cache
def gpus() -> dict[str, Gpu]:
    """Every GPU of gpus.yaml, by name."""
    known = yaml.safe_load(Path(__file__).with_name("gpus.yaml").read_text())
    return {name: _gpu(name, known["reserve"], **facts) for name, facts in known["gpus"].items()}


def find_gpu(name: str, per_node: int = 8) -> Gpu:
    """The GPU of this name, so many in a machine; raises ConfigError, with the nearest known one, for no such GPU."""
    if name not in gpus():
        raise ConfigError(f"no GPU '{name}' is known", where="--gpu", fix=did_you_mean(name, gpus()))
    if per_node < 1:
        raise ConfigError(f"{per_node} GPUs in a machine", where="--gpus-per-node", fix="at least 1")
    return dataclasses.replace(gpus()[name], per_node=per_node)


def _gpu(name: str, reserve: float, **of: Any) -> Gpu:
    bf16 = PEAKS[of["peak"]] * TERA
    return Gpu(
        name=name,
        memory=(of["memory"] - reserve) * GIB,
        bf16=bf16,
        fp8=2 * bf16 if of["fp8"] else None,
        bandwidth=of["bandwidth"] * GIGA,
        link=of["link"] * GIGA,
        network=of["network"] * GIGA,
        watts=of["watts"],
        cores=of["cores"],
    )
