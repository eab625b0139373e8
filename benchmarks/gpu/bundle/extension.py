"""Compiles Transformer Engine's torch extension from its source distribution: C++ only, so no CUDA compiler is needed.

The headers of CUDA, cuDNN and NCCL are those of the wheels that torch brings. What nearly every file includes is
compiled once, as a precompiled header: the 28 files then take minutes on one core, not an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "transformer_engine_torch"
HEADER = '#include "extensions.h"\n#include "pybind.h"\n#include "util.h"\n'
FLAGS = (
    "-std=c++17", "-O1", "-g0", "-w", "-fPIC", "-fvisibility=hidden", "-DNDEBUG",
    "-DTORCH_API_INCLUDE_EXTENSION_H", f"-DTORCH_EXTENSION_NAME={NAME}",
)  # fmt: skip
LIBRARIES = ("-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python", "-ltorch_cuda", "-lc10_cuda", "-l:libcudart.so.13")
ASK = """
import json, sysconfig, torch
print(json.dumps({"python": sysconfig.get_path("include"), "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
                  "site": sysconfig.get_path("purelib"), "abi": int(torch._C._GLIBCXX_USE_CXX11_ABI)}))
"""


def build(source: Path, python: Path, out: Path) -> Path:
    """The extension of the unpacked source distribution for `python`, which has torch; returns the library's path.

    What was compiled before is not compiled again. Raises CalledProcessError where the compiler fails.
    """
    about = json.loads(subprocess.run([python, "-c", ASK], check=True, capture_output=True, text=True).stdout)
    library = out / (NAME + about["suffix"])
    if library.exists():
        return library
    out.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={about['abi']}", *_includes(source, about)]
    _precompile(out, flags)
    files = sorted((source / "csrc").rglob("*.cpp"))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda file: _compile(file, source, out, flags), files))
    site = Path(about["site"])
    paths = [f"-L{site / 'torch/lib'}", f"-L{site / 'nvidia/cu13/lib'}"]
    subprocess.run(["g++", "-shared", "-Wl,-s", "-o", library, *objects, *paths, *LIBRARIES], check=True)
    return library


def _includes(source: Path, about: dict[str, str]) -> list[str]:
    site, common = Path(about["site"]), source / "common_headers"
    own = [common, common / "common", common / "common/include", source / "csrc"]
    torch = [site / "torch/include", site / "torch/include/torch/csrc/api/include"]
    nvidia = [site / "nvidia" / name / "include" for name in ("cu13", "cudnn", "nccl")]
    return [f"-I{path}" for path in (*own, *torch, *nvidia, about["python"])]


def _precompile(out: Path, flags: list[str]) -> None:
    header, done = out / "all.h", out / "all.h.gch"
    if not done.exists():
        header.write_text(HEADER)
        unfinished = out / "all.h.part"
        subprocess.run(["g++", *flags, "-x", "c++-header", header, "-o", unfinished], check=True)
        unfinished.rename(done)


def _compile(file: Path, source: Path, out: Path, flags: list[str]) -> Path:
    target = out / ("_".join(file.relative_to(source / "csrc").with_suffix(".o").parts))
    if not target.exists():
        unfinished = target.with_suffix(".part")
        command = ["g++", *flags, "-include", out / "all.h", "-c", file, "-o", unfinished]
        subprocess.run(command, check=True)
        unfinished.rename(target)
    return target
