"""A Slurm to play with: `eval "$(python tests/slurm/throwaway up --dir D)"`, and `... down --dir D` when done."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from throwaway.cluster import Cluster, remove


def main() -> None:
    """up, down, or guard: down as soon as standard input ends, because the process at its other end did."""
    parser = argparse.ArgumentParser(prog="throwaway", description=__doc__)
    parser.add_argument("what", choices=["up", "down", "guard"])
    parser.add_argument("--dir", type=Path, required=True, help="everything goes there; removed by `down`")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and MariaDB")
    parser.add_argument("--containers", action="store_true", help="with srun --container-image, which runs none")
    options = parser.parse_args()
    folder = options.dir.resolve()
    if options.what == "up":
        cluster = Cluster(folder, options.nodes)
        cluster.up(options.accounting, options.containers, guarded=False)
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
        return
    if options.what == "guard":
        sys.stdin.read()
    remove(folder)


if __name__ == "__main__":
    main()
