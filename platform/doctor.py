"""`megavlm doctor`: what is installed, what each missing piece would enable, and the command to get it.

Looks at package metadata, files and commands, and starts the sandbox: no package is imported, so a broken installation
can be examined too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from .cli import parser, version

SELF = "pip install -e ."
GPU = "pip install -e '.[gpu]'"
APEX = (
    "git clone https://github.com/NVIDIA/apex && cd apex && "
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation ."
)


class Finding(NamedTuple):
    """What was found: `state` is "installed", "missing" or "wrong" (something else goes by that name)."""

    state: str
    detail: str = ""


MISSING = Finding("missing")


@dataclasses.dataclass(frozen=True)
class Piece:
    """One thing to look for. `needed` pieces are those without which nothing runs."""

    name: str
    look: Callable[[], Finding]
    enables: str
    get: str
    needed: bool = False


def package(*names: str) -> Callable[[], Finding]:
    """The first of several distributions that is installed, by its metadata."""

    def look() -> Finding:
        for name in names:
            with contextlib.suppress(PackageNotFoundError):
                found = distribution(name).version
                return Finding("installed", f"{name} {found}" if len(names) > 1 else found)
        return MISSING

    return look


def command(*names: str, arguments: Sequence[str] = ("--version",)) -> Callable[[], Finding]:
    """The first of several commands that is on PATH, with the first line it prints."""

    def look() -> Finding:
        path = next((path for name in names if (path := shutil.which(name))), None)
        return Finding("installed", _first_line(path, *arguments) or path) if path else MISSING

    return look


def sandbox() -> Finding:
    """Whether model-written code can run shut in, by starting the sandbox; why not, where it does not start."""
    from .sandbox import available

    reason = available()
    return Finding("missing", reason) if reason else Finding("installed", command("bwrap")().detail)


def gpu() -> Finding:
    """NVIDIA GPUs by name, memory and driver, as the driver's own tool tells them."""
    path = shutil.which("nvidia-smi")
    query = "--query-gpu=name,memory.total,driver_version"
    line = _first_line(path, query, "--format=csv,noheader") if path else ""
    return Finding("installed", line) if line else MISSING


def torch_for_cuda() -> Finding:
    """Whether the torch that is installed was built for CUDA: its libraries tell without importing it."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    libraries = [path for folder in folders for path in (folder / "lib").glob("*torch_cuda.*")]
    return Finding("installed", libraries[0].name) if libraries else MISSING


def apex() -> Finding:
    """NVIDIA apex has `optimizers`; the project of the same name on PyPI is a toolkit for the Pyramid web framework."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return MISSING
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if any((folder / "optimizers").is_dir() for folder in folders):
        return Finding("installed", package("apex")().detail or str(folders[0]))
    return Finding("wrong", "PyPI's `apex` is an unrelated web toolkit, not NVIDIA's")


def _first_line(*words: str) -> str:
    """First line of a command's output; "" when it fails or takes more than ten seconds."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.splitlines()), "").strip()


PIECES = (
    Piece("torch", package("torch"), "everything", SELF, needed=True),
    Piece("megatron-core", package("megatron-core"), "training, inference and checkpoints", SELF, needed=True),
    Piece("psutil", package("psutil"), "checkpoints: without it megatron-core's writer hangs", SELF, needed=True),
    Piece("transformers", package("transformers"), "published encoders and tokenizers", SELF, needed=True),
    Piece("open_clip_torch", package("open_clip_torch"), "curation's image and text features", SELF, needed=True),
    Piece(
        "faiss",
        package("faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-cpu"),
        "curation's clustering and near-duplicate search; the GPU builds for more than some ten million images",
        f"{SELF}, or with a GPU: pip uninstall faiss-cpu && {GPU}",
        needed=True,
    ),
    Piece("pyarrow", package("pyarrow"), "sidecars and pack manifests", SELF, needed=True),
    Piece("zarr", package("zarr"), "curation's feature store", SELF, needed=True),
    Piece("simplejpeg", package("simplejpeg"), "fast JPEG decoding", SELF, needed=True),
    Piece(
        "NVIDIA GPU", gpu, "training at real size, Triton kernels, FP8", "a machine with an NVIDIA GPU and its driver"
    ),
    Piece(
        "torch for CUDA",
        torch_for_cuda,
        "use of that GPU",
        "pip install --force-reinstall torch==2.13.0 torchvision==0.28.0 (on Linux, PyPI's wheels are the CUDA builds)",
    ),
    Piece("triton", package("triton"), "the fast twins of our kernels", "the CUDA build of torch brings it"),
    Piece("transformer-engine", package("transformer-engine"), "FP8 and fused layers", GPU),
    Piece("opencv", package("opencv-python-headless"), "the image decoder `fast`", SELF, needed=True),
    Piece("nvimgcodec", package("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12"), "the image decoder `nvidia`", GPU),
    Piece("nvidia-dali", package("nvidia-dali-cuda130", "nvidia-dali-cuda120"), "image decoding on the GPU", GPU),
    Piece("NVIDIA apex", apex, "megatron-core's fused optimizers and gradient accumulation", APEX),
    Piece(
        "Slurm",
        command("sbatch"),
        "submit, requeue and multi-node runs",
        "apt-get install slurm-wlm",
    ),
    Piece("tensorboard", package("tensorboard"), "the tracker `tensorboard`", "pip install tensorboard"),
    Piece("wandb", package("wandb"), "the tracker `wandb`", "pip install wandb"),
    Piece("submitit", package("submitit"), "curation's Slurm arrays", "pip install -e '.[slurm]'"),
    Piece("lm-eval", package("lm-eval"), "published text benchmarks", "pip install -e '.[eval]'"),
    Piece("lmms-eval", package("lmms-eval"), "published vision-language benchmarks", "pip install -e '.[eval]'"),
    Piece(
        "sandbox",
        sandbox,
        "benchmarks of model-written code (humaneval), which never runs without",
        "apt-get install bubblewrap; if it is there and does not start: docs/sandbox.md",
    ),
    Piece(
        "Chromium",
        command("chromium", "chromium-browser", "google-chrome"),
        "the tests that open reports in a browser",
        "apt-get install chromium",
    ),
)


def main(argv: Sequence[str]) -> int:
    """Tell what is there; 3 when a needed piece is missing or something else goes by a piece's name."""
    args = parser("doctor").parse_args(argv)
    found = [(piece, piece.look()) for piece in PIECES]
    bad = [piece.name for piece, finding in found if finding.state == "wrong" or (piece.needed and finding == MISSING)]
    print(json.dumps(_as_json(found, bad), indent=2) if args.json else "\n".join(_lines(found, bad)))
    return 3 if bad else 0


def _as_json(found: list[tuple[Piece, Finding]], bad: list[str]) -> dict[str, object]:
    pieces = {
        piece.name: {
            "state": finding.state,
            "detail": finding.detail,
            "needed": piece.needed,
            "enables": piece.enables,
            "get": piece.get,
        }
        for piece, finding in found
    }
    return {"ok": not bad, "problems": bad, **_machine(), "pieces": pieces}


def _machine() -> dict[str, object]:
    return {
        "megavlm": version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
    }


def _lines(found: list[tuple[Piece, Finding]], bad: list[str]) -> list[str]:
    out = ["megavlm {megavlm}, Python {python}, {system}, {cores} cores".format(**_machine()), ""]
    for piece, finding in found:
        out.append(f"  {finding.state:<10}{piece.name:<20}{finding.detail}".rstrip())
        if finding.state != "installed":
            out += [f"            enables: {piece.enables}", f"            get it:  {piece.get}"]
    return [*out, "", f"to mend: {', '.join(bad)}" if bad else "nothing needed is missing"]
