"""What a run came from: the command, the code, the packages and the machine, written down once when it is made."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("megavlm", "torch", "megatron-core", "transformer-engine", "transformers", "numpy", "pyarrow", "faiss-cpu")


def provenance(command: Sequence[str], origins: Mapping[str, str]) -> dict[str, Any]:
    """All of it as one JSON object; nothing here needs torch, a network or a repository."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "folder": os.getcwd(),
        "code": _code_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "machine": {"host": socket.gethostname(), "system": platform.platform(), "cores": os.cpu_count()},
        "slurm": {key: value for key, value in os.environ.items() if key in {"SLURM_JOB_ID", "SLURM_NNODES"}},
        "origins": {key: origin for key, origin in origins.items() if origin != "default"},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code_version() -> dict[str, Any]:
    """Commit and cleanliness of the checkout this file stands in; empty when it stands in none."""
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain"))} if commit else {}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
