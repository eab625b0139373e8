"""A real Slurm for the tests of this folder; one per xdist worker, and fresh ones for those that break things."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # for the package beside this file, which is not installed

from throwaway.cluster import Cluster
from throwaway.containers import can_build
from throwaway.daemons import program

from megavlm.platform.config.tree import merge

PLUGIN = Path(__file__).parent / "throwaway" / "plugin"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NEEDED_BY_ROOT = ("unshare", "nsenter", "ip", "tc")
CURRENT = pytest.StashKey[Cluster]()
# Everything is noticed quickly and tried again at once; one process per node, so that jobs can share the nodes.
PROFILE: dict[str, Any] = {
    "partition": "main",
    "gpus_per_node": 1,
    "processes_per_node": 1,
    "cpus_per_task": 1,
    "minutes": 10,
    "save_seconds": 30,
    "setup": [f"export PYTHONPATH={PLUGIN}${{PYTHONPATH:+:$PYTHONPATH}}"],
    "environment": {"OMP_NUM_THREADS": "1"},
    "hang": {"seconds": 6, "steps": 10, "other_seconds": 30},
    "attempts": {"most": 8, "without_progress": 3},
    "preflight": {"kind": "none"},
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the tests that run side by side, those that may take longest come first: none is to wait until all others end.

    With a quick one after each: a worker is handed a test ahead, and no long one is to wait behind another. All other
    tests stay as they are: they share what a module has set up.
    """

    def is_ours(item: pytest.Item) -> bool:
        return bool(item.get_closest_marker("slurm")) and not item.get_closest_marker("multiprocess")

    def patience(item: pytest.Item) -> float:
        limit = item.get_closest_marker("timeout")
        return float(limit.args[0]) if limit else 0.0

    ours = sorted(filter(is_ours, items), key=patience, reverse=True)
    half = (len(ours) + 1) // 2
    pairs = itertools.zip_longest(ours[:half], reversed(ours[half:]))
    riffled = [item for pair in pairs for item in pair if item is not None]
    items[:] = riffled + [item for item in items if not is_ours(item)]


def need(commands: tuple[str, ...]) -> None:
    """Skip without them, or fail where MEGAVLM_REQUIRE_SLURM=1."""
    missing = [command for command in commands if program(command) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}; `make system` tells which packages"
        pytest.fail(reason) if os.environ.get("MEGAVLM_REQUIRE_SLURM") == "1" else pytest.skip(reason)


def started(**options: Any) -> Iterator[Cluster]:
    """A cluster that is up, and down afterwards. Its folder has a short name: a socket's path holds 107 characters."""
    need(NEEDED + (NEEDED_BY_ROOT if os.geteuid() == 0 else ()))
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="slurm-")))
    cluster.up(**options)
    try:
        yield cluster
    finally:
        cluster.down()


def entered(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """For one test the environment names this cluster and no other."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster that tests share. They leave no job behind; what one did leave is cleared after its module."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for one in started():
            request.config.stash[CURRENT] = one
            yield entered(one, monkeypatch)
            del request.config.stash[CURRENT]


@pytest.fixture(scope="module", autouse=True)
def cluster_is_cleared(request: pytest.FixtureRequest) -> Iterator[None]:
    """A failed test must not take the nodes from all that follow."""
    yield
    if (used := request.config.stash.get(CURRENT, None)) is not None:
        used.clear()


@pytest.fixture
def fresh_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of the test's own, to kill nodes and controllers of."""
    for one in started():
        yield entered(one, monkeypatch)


@pytest.fixture
def pyxis_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of the test's own where srun and sbatch take --container-image and its like (and run no container).

    The task finds them in its environment: --container-image as STANDIN_CONTAINER_IMAGE.
    """
    if not can_build():
        need(("gcc", "the header slurm/spank.h"))
    for one in started(containers=True):
        yield entered(one, monkeypatch)


@pytest.fixture(scope="session")
def accounting_session() -> Iterator[Cluster]:
    """One with slurmdbd and MariaDB."""
    need(("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db"))
    yield from started(accounting=True)


@pytest.fixture
def accounting_cluster(accounting_session: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster with accounting, shared and cleared after each test."""
    yield entered(accounting_session, monkeypatch)
    accounting_session.clear()


@pytest.fixture
def steps_worker(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs the verb `steps` for this process and what it starts; jobs get it from `profile`'s set-up lines."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGIN), *([before] if before else [])]))
    return PLUGIN


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`profile(partition="low", hang={"seconds": 3}) -> Path`: a profile of the cluster, with keys of one's own."""

    def write(**keys: Any) -> Path:
        path = tmp_path_factory.mktemp("profile") / "throwaway.yaml"
        path.write_text(yaml.safe_dump(merge(PROFILE, keys)))
        return path

    return write
