"""What srun starts on each node of a check: it measures, and writes FOLDER/NODE.json.

python -m megavlm.slurm.preflight.node FOLDER [--full] [--worst PART] [--seconds SECONDS]

What a node can tell by itself is on disk before it meets the others; what only shows between nodes is added after.
FOLDER is new for each check, and seen by all nodes. Exits with 0 whatever the figures are: judge.py judges them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.runs.lines import write_whole

from . import facts, gpus
from .exchange import Exchange, own_address
from .host import hold
from .meeting import Late, Message, Task, arrive, attend

Record = dict[str, Any]
MEETING = "meeting"


class Node:
    """This node: its record so far, and how to measure each figure."""

    def __init__(self, folder: Path, full: bool) -> None:
        self.folder, self.full = folder, full
        self.started = time.monotonic()
        self.name = own_name()
        self.measures: dict[str, Callable[[], float]] = {
            "disk": lambda: facts.disk(folder),
            "memory_disk": facts.memory_disk,
            **({"matmul": _matmul} if full else {}),
        }
        self.record: Record = {"node": self.name, "host": platform.node(), "kind": "full" if full else "quick"}

    def measure(self) -> Record:
        """Everything that needs no other node; what fails is told under `errors`."""
        told = gpus.gpu_facts()
        figures, errors = {}, {}
        for name, measure in self.measures.items():
            try:
                figures[name] = measure()
            except Exception as error:  # a GPU that cannot compute says so in many ways
                errors[name] = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        versions = facts.versions() | {"driver": next((gpu["driver"] for gpu in told.get("gpus", [])), None)}
        self.record |= told | {
            "figures": figures,
            "errors": errors,
            "versions": versions,
            "free": facts.free(self.folder),
            "counts": {**told.get("counts", {}), **gpus.infiniband_counts()},
            "gpus_given": gpus.gpus_given(os.environ),
            "step_nodes": os.environ.get("SLURM_STEP_NODELIST"),
        }
        return self.record

    def write(self) -> None:
        """The record, whole; a node that cannot write it gave no answer."""
        self.record |= {"time": round(time.time(), 3), "seconds": round(time.monotonic() - self.started, 3)}
        write_whole(self.folder / f"{self.name}.json", json.dumps(self.record, indent=2))

    def meet(self, place: Path, address: str, seconds: float) -> None:
        """Be measured with the others; a meeting that fails is told in the record."""
        exchange = Exchange()
        tasks: dict[str, Task] = {"all_reduce": _all_reduce, "clock": _clock, "exchange": exchange.run}
        tasks |= {"again": self._again, "figures": self._figures}
        try:
            with arrive(place, self.name, address, exchange.port, min(seconds / 2, ARRIVAL_SECONDS)) as line:
                end = attend(line, tasks, seconds)
            figures = self.record["figures"] | end.pop("figures")
            self.record |= {"met": True, **{name: end[name] for name in end if name != "do"}, "figures": figures}
        except Late:
            self.record["late"] = True
        except OSError as error:
            self.record["unreachable"] = str(error) or type(error).__name__

    def _figures(self, _request: Message) -> Message:
        return {"figures": self.record["figures"]}

    def _again(self, request: Message) -> Message:
        return {"value": self.measures[request["figure"]]()}


ARRIVAL_SECONDS = 60.0  # for the leading node to open the meeting


def own_name(environment: Mapping[str, str] = os.environ) -> str:
    """What Slurm calls this node; outside of Slurm, its host name."""
    return environment.get("SLURMD_NODENAME") or platform.node()


def meeting_place(folder: Path, environment: Mapping[str, str]) -> Path:
    """A file of this job step's own: nobody goes to the meeting of an earlier one."""
    parts = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    return folder / f".{MEETING}-{'.'.join(environment.get(part, '0') for part in parts)}"


def main(argv: Sequence[str]) -> int:
    """Measure, meet the others of this job step, write."""
    parser = argparse.ArgumentParser(prog="python -m megavlm.slurm.preflight.node")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="with torch: matmul and all-reduce")
    parser.add_argument("--worst", type=float, default=0.5, help="below this part of the median, measure again")
    parser.add_argument("--seconds", type=float, default=300.0, help="for all of it")
    args = parser.parse_args(argv)
    watchdog = threading.Timer(args.seconds, os._exit, [1])  # a disk or GPU that hangs must not hold up the others
    watchdog.daemon = True
    watchdog.start()
    node = Node(args.folder, args.full)
    node.measure()
    node.write()
    count = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
    if count > 1:
        _meet_all(node, count, args)
        node.write()
    return 0


def _meet_all(node: Node, count: int, args: argparse.Namespace) -> None:
    place, address = meeting_place(args.folder, os.environ), own_address(os.environ.get("SLURM_LAUNCH_NODE_IPADDR"))
    if os.environ.get("SLURM_NODEID", "0") == "0":
        options = (place, address, count, args.worst, args.full)
        threading.Thread(target=hold, args=options, daemon=True).start()
    node.meet(place, address, args.seconds)


def _clock(_request: Message) -> Message:
    return {"time": time.time()}


def _matmul() -> float:
    from .devices import matmul

    return matmul()


def _all_reduce(request: Message) -> Message:
    from .devices import all_reduce

    return all_reduce(request)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
