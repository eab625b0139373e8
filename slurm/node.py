"""What srun starts on each node: the verb, knowing which of the nodes this is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from megavlm.platform.cli import main as command_line
from megavlm.platform.nodes import RANK

NO_FAILURE = {0, 3, 4, 5}  # what a verb may end with on purpose


def main(argv: Sequence[str]) -> int:
    """Run a verb as node number SLURM_NODEID of the job step; returns its exit code.

    Only the leading node's word counts. srun ends all others with the first task that exits with anything but 0, so
    another node may say nothing but "failed": one that is through a moment earlier would cut the leader off.
    """
    rank = os.environ.get("SLURM_NODEID", "0")
    os.environ[RANK] = rank
    code = command_line(argv)
    return 0 if rank != "0" and code in NO_FAILURE else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
