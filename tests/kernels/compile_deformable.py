"""What test_deformable_attention.py starts: compiles the Triton twin for Hopper, which needs no GPU.

The interpreter runs any Python; the compiler does not. A process of its own, since the interpreter is chosen for all.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megavlm.kernels import deformable_attention_kernels as kernels
from megavlm.kernels import deformable_attention_triton as twin

SHAPE = {"HEADS": 2, "LEVELS": 2, "POINTS": 2, "D": 16, "LANES": 16, "ACC": tl.float32}
POINTERS = {"shapes": "*i32", "locations": "*fp32", "weights": "*fp32", "queries": "i32", "cells": "i32"}
SORTED = {"order": "*i64", "share_of": "*fp32", "bounds": "*i64"}


def compiled(kernel: Any, types: dict[str, str], **constants: Any) -> None:
    constants = {name: value for name, value in (SHAPE | constants).items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=places), target=GPUTarget("cuda", 90, 32))
    print(kernel.fn.__name__)


def main(element: str) -> None:
    of_values = dict.fromkeys(("values", "out", "grad", "grad_values"), f"*{element}")
    types = of_values | POINTERS | SORTED | {"grad_locations": "*fp32", "grad_weights": "*fp32"}
    types |= {"cell_of": "*i32", "samples": "i32", "nowhere": "i32"}
    compiled(kernels.forward, types, QUERIES=twin.QUERIES)
    compiled(kernels.points_grad, types, QUERIES=twin.QUERIES)
    compiled(kernels.corners, types, SAMPLES=twin.SAMPLES)
    compiled(kernels.values_grad, types, READS=16, ENTRIES=twin.ENTRIES)


if __name__ == "__main__":
    main(sys.argv[1])
