"""A curation on a real Slurm: failing shards, a driver that is told to stop, and the same bytes as on one machine."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(150)]
ONCE, ALWAYS = [f"{number:05d}" for number in (3, 17, 40, 41, 42, 130, 249)], ["00111"]
SHARDS = [f"{number:05d}" for number in range(250)]


def test_250_shards_of_which_seven_fail_once_and_one_always(cluster, profile, chores, tools, curate, tmp_path):
    (tmp_path / "raw").mkdir()
    for shard in SHARDS:
        (tmp_path / "raw" / f"{shard}.tar").touch()
    stages = {"flaky:Flaky": {"told": str(tmp_path), "once": ONCE, "always": ALWAYS}}
    executor = {"name": "slurm", "workers": 4, "tasks_per_command": 5, "cluster": str(profile())}
    run = curate("run", stages, executor)
    told, errors = run.communicate(timeout=120)
    assert run.returncode == 1, errors
    error = json.loads(told)["error"]
    assert "1 of 250 tasks are not done" in error["what"] and "00111 does not work today" in error["what"]
    assert Path(error["where"]).read_text().count("00111 does not work today") >= 3
    assert tools.told(tmp_path, "done") == {shard: 1 for shard in SHARDS if shard not in ALWAYS}
    begun = {shard: 3 if shard in ALWAYS else 2 if shard in ONCE else 1 for shard in SHARDS}
    assert tools.told(tmp_path, "begun") == begun, "no shard that succeeded is run again"
    status = curate_status(tmp_path / "run")
    assert (status["funnel"][0]["done"], status["finished"]) == (249, False)


def curate_status(run: Path) -> dict:
    from megavlm.data_curation.funnel import funnel
    from megavlm.data_curation.run import CurationRun

    opened = CurationRun.open(run)
    return {"funnel": funnel(opened), "finished": opened.folder.finished}


@pytest.fixture
def crawls(monkeypatch):
    """What tests/data_curation makes small crawls with."""
    place = Path(__file__).parents[2] / "data_curation" / "conftest.py"
    spec = importlib.util.spec_from_file_location("crawls", place)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "crawls", module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_it_is_the_local_curation_to_the_byte_stopped_in_between(cluster, profile, crawls, curate, tools, tmp_path):
    crawls.small_crawl(tmp_path / "raw", shards=4, per_shard=8)
    stages = crawls.recipe(tmp_path / "raw")["curation"]["stages"]
    arrays = {"name": "slurm", "workers": 2, "tasks_per_command": 2, "cluster": str(profile())}
    local = curate("local", stages, {"name": "local", "workers": 1, "tasks_per_command": 4})
    first = curate("arrays", stages, arrays)
    tools.until(lambda: (tmp_path / "arrays" / "ledger" / "embed").exists(), 60)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 4, errors
    tools.until(lambda: not cluster.run("squeue", "--noheader").strip(), 10)
    for process in (local, curate("arrays", stages, arrays)):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert outputs(tmp_path / "arrays") == outputs(tmp_path / "local")
    assert (tmp_path / "arrays" / "export").is_dir()


def outputs(run: Path) -> dict[str, bytes]:
    """Everything a run decides or copies."""
    own = {"attempts", "ledger", "config.yaml", "provenance.json", "metrics.jsonl", "finished", "funnel.json", "saved"}
    files = (path for path in run.rglob("*") if path.is_file())
    kept = {str(path.relative_to(run)): path for path in files if path.relative_to(run).parts[0] not in own}
    return {name: path.read_bytes() for name, path in kept.items() if not Path(name).name.startswith(".")}


def test_a_missing_cluster_is_said_before_anything_is_read(chores, curate, tmp_path):
    for executor in ({"name": "slurm"}, {"name": "slurm", "cluster": "nowhere"}, {"name": "local", "cluster": "x"}):
        run = curate("run", {"ingest": {}}, executor)
        told, errors = run.communicate(timeout=100)
        assert run.returncode == 2 and "cluster" in json.loads(told)["error"]["what"], errors
        assert not (tmp_path / "run" / "ledger").exists()
