"""Third parties' work for arrays: a verb, and a curation stage, that tell in a file every time they are run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

VERB = """
import os, time
from megavlm.platform.errors import InputError

def tell(folder, line):
    handle = os.open(os.path.join(folder, "told"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, line.encode() + b"\\n")
    os.close(handle)

def chore(argv):
    folder, name, seconds = argv[:3]
    tell(folder, f"begun {name}")
    time.sleep(float(seconds))
    if "fail" in argv:
        raise InputError(f"chore {name} cannot be done")
    if "die" in argv:
        os.kill(os.getpid(), 9)
    tell(folder, f"done {name}")
    print("the log of one that succeeds is not kept")
"""

STAGE = """
import os
import pyarrow as pa
from megavlm.data_curation.stages.base import ShardStage
from megavlm.platform.errors import InputError
from chores import tell

TEXT = pa.string()
SCHEMA = pa.schema({"key": TEXT, "keep": pa.bool_(), "reason": TEXT, "detail": TEXT})

class Flaky(ShardStage):
    told: str
    once: list[str]
    always: list[str]

    def judge(self, run):
        def judge(shard):
            tell(self.told, f"begun {shard}")
            before = open(os.path.join(self.told, "told")).read().split().count(shard)
            if shard in self.always or (shard in self.once and before == 1):
                raise InputError(f"{shard} does not work today")
            tell(self.told, f"done {shard}")
            return pa.Table.from_pylist([{"key": shard, "keep": True}], schema=SCHEMA), {}
        return judge
"""


def told(folder: Path, what: str) -> Counter[str]:
    """How often each name was begun, or done."""
    lines = (folder / "told").read_text().split("\n") if (folder / "told").exists() else []
    return Counter(line.split()[1] for line in lines if line.startswith(what))


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `condition` returns once it is true; AssertionError when that does not come."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.1)
    return value


@pytest.fixture
def chores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """`chores("name", seconds=0, "fail")` -> a command's words; known here and to everything that is started."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "chores.py").write_text(VERB)
    (modules / "flaky.py").write_text(STAGE)
    package = modules / "chores-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: chores\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[megavlm.commands]\nchore = chores:chore\n")
    path = [str(modules), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    return lambda name, *how, seconds=0.0: ["chore", str(tmp_path), name, str(seconds), *how]


@pytest.fixture
def curate(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `megavlm curate run` with these stages and this executor on the raw folder, into `out`."""

    def start(out: str, stages: dict[str, Any], executor: dict[str, Any]) -> subprocess.Popen[str]:
        tree = {"name": "arrays", "curation": {"source": {"path": str(tmp_path / "raw")}, "stages": stages}}
        tree["curation"]["executor"] = executor
        recipe = tmp_path / f"{out}.yaml"
        recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
        words = ["curate", "run", str(recipe), "--out", str(tmp_path / out), "--json"]
        command = [sys.executable, "-m", "megavlm.platform.cli", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )

    return start


@pytest.fixture
def tools() -> Any:
    """This file's functions, since test folders are no packages."""
    return types.SimpleNamespace(told=told, until=until)
