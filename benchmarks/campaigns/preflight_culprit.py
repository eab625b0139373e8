"""Campaign: does `megavlm preflight` name the node with the slow network, that one alone, and nobody when all are well?

`make campaign NAME=preflight_culprit` takes some four minutes on two cores, as root (tc, network namespaces), where
Slurm is installed; the result is preflight_culprit.md beside this file. Four nodes of a real Slurm get a network of
200 Mbit/s each. 20 times one of them is throttled to a fifth, each in its turn; 20 times none is. Every check is a
command of its own. Exits with 3 unless the culprit alone was named 20 of 20 times, and nobody 20 of 20 times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "slurm"))  # the throw-away Slurm of the tests, which is not installed

from throwaway.cluster import Cluster  # noqa: E402

RUNS = 20
MBIT, SLOW_MBIT = 200, 40
RESULT = Path(__file__).with_suffix(".md")
COLUMNS = ["run", "throttled", "named", "slowest Mbit/s", "median Mbit/s", "seconds", "load"]
MAIN = "import sys; from megavlm.slurm.preflight.verb import main; sys.exit(main(sys.argv[1:]))"


class Told(NamedTuple):
    """One check: who was throttled, who was named, and what it took. `load`: processes that wanted to run before it."""

    throttled: str | None
    named: list[str]
    slowest: float
    median: float
    seconds: float
    load: float

    @property
    def right(self) -> bool:
        """Whether exactly the culprit was named."""
        return self.named == ([self.throttled] if self.throttled else [])


def check(cluster: Cluster, culprit: str | None) -> Told:
    """Throttle one node for the time of one command."""
    if culprit:
        cluster.throttle(culprit, SLOW_MBIT)
    load, started = os.getloadavg()[0], time.monotonic()
    words = ["--cluster", "local-test", "--kind", "quick", "--out", str(cluster.shared), "--json"]
    done = subprocess.run([sys.executable, "-c", MAIN, *words], stdout=subprocess.PIPE, text=True, timeout=120)
    seconds = time.monotonic() - started
    if culprit:
        cluster.throttle(culprit, MBIT)
    told: dict[str, Any] = json.loads(done.stdout)
    if done.returncode != (3 if told["bad"] else 0):
        raise RuntimeError(f"exit code {done.returncode} with {told}")
    rates = [node["figures"]["network"] * 8e-6 for node in told["nodes"]]
    return Told(culprit, list(told["bad"]), min(rates), told["median"]["network"] * 8e-6, seconds, load)


def row(number: int, told: Told) -> str:
    """One line of the table."""
    figures = f"{told.slowest:.0f} | {told.median:.0f} | {told.seconds:.1f} | {told.load:.1f}"
    return f"| {number} | {told.throttled or '-'} | {', '.join(told.named) or '-'} | {figures} |"


def facts(told: list[Told], seconds: float, slurm: str) -> list[str]:
    """What the figures belong to, and what they come to."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    guilty, clean = ([one for one in told if bool(one.throttled) is has] for has in (True, False))
    longest = max(one.seconds for one in told)
    return [
        f"## {datetime.now(UTC):%Y-%m-%d}, commit {commit}",
        "",
        "- command: `make campaign NAME=preflight_culprit`",
        f"- machine: {os.cpu_count()} cores, no GPU; load: processes that wanted to run, others' included",
        f"- versions: {slurm}, Python {sys.version.split()[0]}, megavlm {version('megavlm')}",
        f"- 4 nodes in namespaces, {MBIT} Mbit/s each way by tc tbf; the throttled one {SLOW_MBIT} Mbit/s",
        f"- wall time: {seconds:.0f} s; the slowest check {longest:.1f} s",
        f"- exactly the culprit named: {sum(one.right for one in guilty)} of {len(guilty)}",
        f"- somebody named where nobody was throttled: {sum(not one.right for one in clean)} of {len(clean)}",
        "",
    ]


def main() -> int:
    """Throttled and clean checks in turn, then the table."""
    cluster, told, started = Cluster(Path(tempfile.mkdtemp(prefix="slurm-"))), [], time.monotonic()
    cluster.up()
    try:
        os.environ.update(cluster.environment)
        slurm = cluster.run("sinfo", "--version").strip()
        for node in cluster.nodes:
            cluster.throttle(node, MBIT)
        for number in range(RUNS):
            for culprit in (cluster.nodes[number % len(cluster.nodes)], None):
                told.append(check(cluster, culprit))
                print(row(len(told), told[-1]), flush=True)
    finally:
        cluster.down()
    table = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *(row(i, one) for i, one in enumerate(told, 1))]
    RESULT.write_text(
        "\n".join(["# The culprit of a slow network", "", *facts(told, time.monotonic() - started, slurm), *table])
        + "\n"
    )
    return 0 if all(one.right for one in told) else 3


if __name__ == "__main__":
    sys.exit(main())
