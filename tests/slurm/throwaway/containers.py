"""A stand-in for a container plug-in: srun and sbatch take its options, and the task is told what they were."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("containers.c")
HEADER = Path("/usr/include/slurm/spank.h")


def can_build() -> bool:
    """Whether there is what it takes to compile a plug-in of Slurm."""
    return shutil.which("gcc") is not None and HEADER.exists()


def write_plug_in(folder: Path) -> None:
    """Compile it into `folder` and have Slurm load it; raises CalledProcessError with the compiler's words."""
    library = folder / "containers.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, SOURCE], check=True, capture_output=True, text=True)
    (folder / "plugstack.conf").write_text(f"required {library}\n")
