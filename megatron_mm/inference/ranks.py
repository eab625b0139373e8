"""Starts a module of ours on several ranks of this machine, through torchrun. Loads no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from megavlm.platform.errors import MegaVLMError


def start_on_ranks(module: str, words: Sequence[str], ranks: int) -> None:
    """Run `python -m module words` on `ranks` processes and wait; what they print goes to stderr.

    Raises MegaVLMError when one of them fails. torchrun picks a free port and ends the others.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run([*torchrun, "-m", module, *words], stdout=sys.stderr)
    if done.returncode:
        raise MegaVLMError(
            f"a rank of {module.rpartition('.')[0]} failed with exit code {done.returncode}",
            fix="its message stands above",
        )
