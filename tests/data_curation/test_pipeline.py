"""The whole pipeline on a small crawl: what comes out, what is told, what is done again and what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.run import CurationRun
from megavlm.platform.cli import main
from megavlm.platform.shards import ShardReader


def by_stage(told):
    return {line["stage"]: line for line in told["funnel"]}


@pytest.fixture(scope="module")
def made(tools, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A crawl that was curated once, in FOLDER/raw and FOLDER/run, and which key copies which."""
    folder = tmp_path_factory.mktemp("made")
    copies = tools.small_crawl(folder / "raw")
    tools.curated(folder, tools.recipe(folder / "raw"))
    return folder, copies


@pytest.fixture
def done(made, tmp_path) -> tuple[Path, dict[str, str]]:
    """As `crawl`, and the run of its recipe is done; the crawl itself is shared and stays as it is."""
    folder, copies = made
    shutil.copytree(folder / "run", tmp_path / "run")
    return folder / "raw", copies


def test_exports_the_untouched_bytes_with_caption_and_metadata(done, tools, curate, tmp_path):
    folder, copies = done
    curate(tools.recipe(folder))
    raw = {key: shard for tar in folder.glob("*.tar") for shard in [ShardReader(tar)] for key in list(shard.keys())}
    reader = ShardReader(tmp_path / "run" / "export")
    assert 0 < len(reader) < len(raw)
    for key in list(reader.keys()):
        exported, source = reader.read(key), raw[key].read(key)
        assert exported.fields["jpg"] == source.fields["jpg"]
        assert exported.text() == source.text()
        facts = exported.json()
        assert facts["source"]["metadata"] == source.json()
        assert (facts["key"], facts["width"], facts["height"]) == (key, 120, 100)
        assert facts["source"]["shard"] == key[:5]


def test_the_funnel_adds_up_and_the_rejected_are_all_listed(done, tools, curate, tmp_path):
    folder, copies = done
    told = curate(tools.recipe(folder))
    assert json.loads((tmp_path / "run" / "funnel.json").read_text()) == told["funnel"]
    lines = told["funnel"]
    assert lines[0]["in"] == 3 * 13  # 12 in each tar, one lost
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        assert line["in"] == line["kept"] + sum(line["dropped"].values())
        assert following is None or following["in"] == line["kept"]
    rejected = pq.read_table(tmp_path / "run" / "rejected.parquet").to_pylist()
    assert len(rejected) == sum(sum(line["dropped"].values()) for line in lines)
    assert {row["key"] for row in rejected if row["reason"].startswith("duplicate")} == set(copies)
    assert [row["detail"] for row in rejected if row["reason"] == "failed_to_download"] == ["HTTP Error 404"] * 3
    assert len(rejected) + lines[-1]["kept"] == lines[0]["in"]


def test_the_same_command_again_does_nothing_anew(done, tools, curate, tmp_path):
    folder, _ = done
    curate(tools.recipe(folder))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "ledger").glob("*/*")}
    assert len(before) == 2 * 8, "a stage that is done leaves two files"
    curate(tools.recipe(folder))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "ledger").glob("*/*")} == before


def test_a_new_threshold_redoes_only_what_follows(done, tools, curate, tmp_path):
    folder, _ = done
    curate(tools.recipe(folder))
    ledger = tmp_path / "run" / "ledger"

    def times(stage):
        return (ledger / stage / "all.jsonl").stat().st_mtime_ns

    before = {stage: times(stage) for stage in ("embed", "cluster", "select")}
    told = curate(tools.recipe(folder), "curation.stages.select.nearest=2")
    assert times("embed") == before["embed"] and times("cluster") == before["cluster"]
    assert times("select") != before["select"]
    assert by_stage(told)["export"]["kept"] <= 8
    assert len(ShardReader(tmp_path / "run" / "export")) == by_stage(told)["export"]["kept"]
    fresh = curate(tools.recipe(folder, select={"nearest": 2}), out="fresh")
    assert by_stage(fresh)["select"]["dropped"] == by_stage(told)["select"]["dropped"]


def test_a_smaller_selection_leaves_no_old_output_shards(done, tools, curate, tmp_path):
    folder, _ = done
    curate(tools.recipe(folder))
    many = len(list((tmp_path / "run" / "export").glob("*.tar")))
    curate(tools.recipe(folder), "curation.stages.select.nearest=1")
    assert len(list((tmp_path / "run" / "export").glob("*.tar"))) == 1 < many


def test_a_changed_shard_redoes_itself_and_the_global_stages(crawl, tools, curate, tmp_path):
    folder, _ = crawl
    curate(tools.recipe(folder))
    ledger = CurationRun.open(tmp_path / "run").ledger
    before = ledger.state("embed")[0]
    tools.write_shard(
        folder, "00002", [tools.raw(f"00002{i:04d}", tools.encode(tools.photo(7000 + i))) for i in range(9)]
    )
    told = curate(tools.recipe(folder))
    assert ledger.state("embed")[0] == before
    assert by_stage(told)["ingest"]["in"] == 2 * 13 + 9
    assert by_stage(told)["export"]["in"] == len(ShardReader(tmp_path / "run" / "export"))


def test_local_worker_processes_give_the_same_files(crawl, tools, curate, tmp_path):
    tree = tools.recipe(crawl[0])
    stages = tree["curation"]["stages"]  # both kinds, each of which is started as any other of its kind
    tree["curation"]["stages"] = {name: stages[name] for name in ("ingest", "filter", "embed", "cluster", "export")}
    curate(tree)
    tree["curation"]["executor"] = {"name": "local", "workers": 2, "tasks_per_command": 2}
    curate(tree, out="local")
    assert outputs(tmp_path / "local") == outputs(tmp_path / "run")


def outputs(run: Path) -> dict[str, bytes]:
    """Everything a run decides or copies; times, logs and the driver's own records left out."""
    own = {"attempts", "ledger", "config.yaml", "provenance.json", "metrics.jsonl", "finished", "funnel.json"}
    files = (path for path in run.rglob("*") if path.is_file())
    return {str(p.relative_to(run)): p.read_bytes() for p in files if p.relative_to(run).parts[0] not in own}


def test_inspect_and_status_tell_a_samples_life(done, tools, curate, tmp_path, capsys):
    folder, copies = done
    curate(tools.recipe(folder))
    copy, original = next(iter(copies.items()))
    assert main(["curate", "inspect", str(tmp_path / "run"), copy, "--json"]) == 0
    [life] = json.loads(capsys.readouterr().out)["samples"]
    rows = life["stages"]
    assert [row["stage"] for row in rows] == ["ingest", "filter", "embed", "assign", "deduplicate"]
    assert rows[-1]["duplicate_of"] == original and not rows[-1]["keep"]
    assert main(["curate", "inspect", str(tmp_path / "run"), "nothing"]) == 2
    assert "no sample 'nothing'" in capsys.readouterr().err
    assert main(["curate", "status", str(tmp_path / "run")]) == 0
    assert "duplicate_hash" in capsys.readouterr().out


def test_another_source_is_another_run(done, tools, curate, tmp_path, capsys):
    folder, _ = done
    curate(tools.recipe(folder))
    curate(tools.recipe(tmp_path / "elsewhere"), code=2)


def test_a_second_driver_is_refused(done, tools, curate, tmp_path):
    import fcntl

    folder, _ = done
    curate(tools.recipe(folder))
    with (tmp_path / "run" / "ledger" / "driver.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another" in curate(tools.recipe(folder), code=2)["error"]["what"]
    curate(tools.recipe(folder))


def test_a_failing_task_is_named_with_its_log_and_the_rest_is_kept(crawl, tools, curate, tmp_path):
    folder, _ = crawl
    told = curate(tools.recipe(folder, cluster={"clusters": 500}), code=1)
    assert "500 clusters for 36 images" in told["error"]["what"]
    assert Path(told["error"]["where"]).exists()
    run = CurationRun.open(tmp_path / "run")
    assert len(run.ledger.state("embed")) == 3 and not run.folder.finished


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"filter": {"min_sides": 3}}, "min_side"),
        ({"deduplicate": {"keep": "best"}}, "largest"),
        ({"embed": {"embedder": {"name": "pixel"}}}, "pixels"),
    ],
)
def test_a_wrong_option_exits_2_and_says_what_was_meant(crawl, tools, curate, change, says):
    told = curate(tools.recipe(crawl[0], **change), code=2)
    assert says in str(told["error"])


def test_a_stage_before_what_it_reads_is_refused(crawl, tools, curate):
    tree = tools.recipe(crawl[0])
    stages = tree["curation"]["stages"]
    tree["curation"]["stages"] = {"ingest": {}, "assign": stages["assign"], **stages}
    assert "assign" in curate(tree, code=2)["error"]["what"]


def test_a_third_partys_stage_is_named_by_module_and_object(crawl, tools, curate, tmp_path, monkeypatch):
    (tmp_path / "extra_stage.py").write_text(EXTRA_STAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = tools.recipe(crawl[0])
    stages = list(tree["curation"]["stages"].items())
    tree["curation"]["stages"] = dict([*stages[:2], ("extra_stage:EvenOnly", {"modulus": 2}), *stages[2:]])
    told = by_stage(curate(tree))
    assert told["extra_stage:EvenOnly"]["dropped"] == {"odd": 18}
    assert told["embed"]["in"] == 18


EXTRA_STAGE = """
import pyarrow as pa
from megavlm.data_curation.stages.base import ShardStage

TEXT = pa.string()
SCHEMA = pa.schema({"key": TEXT, "keep": pa.bool_(), "reason": TEXT, "detail": TEXT})

class EvenOnly(ShardStage):
    modulus: int

    def judge(self, run):
        def row(key):
            odd = int(key) % self.modulus == 1
            return {"key": key, "keep": not odd, "reason": "odd" if odd else None}

        def judge(shard):
            keys = run.survivors(self.name, shard).to_pylist()
            return pa.Table.from_pylist([row(key) for key in keys], schema=SCHEMA), {}
        return judge
"""


FLAKY_STAGE = """
import contextlib
from megavlm.data_curation.stages.ingest import Ingest
from megavlm.platform.errors import InputError

class Flaky(Ingest):
    broken: list[str] = []

    def judge(self, run):
        judge = super().judge(run)
        def work(shard):
            if shard in self.broken:
                raise InputError(f"{shard} is broken", fix="mend it")
            return judge(shard)
        return work

    @contextlib.contextmanager
    def at_work(self, run, tasks):
        try:
            yield self.worker(run)
        finally:
            run.folder.path("closed").write_text("as whoever holds a server does")
"""


def flaky(tools, folder: Path, broken: list[str]):
    tree = tools.recipe(folder)
    tree["curation"]["stages"] = {"flaky:Flaky": {"broken": broken}}
    return tree


@pytest.fixture
def flaky_stage(tmp_path, monkeypatch):
    (tmp_path / "flaky.py").write_text(FLAKY_STAGE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_failing_shard_stops_no_other_of_its_command(crawl, tools, curate, tmp_path, flaky_stage):
    folder, _ = crawl
    error = curate(flaky(tools, folder, ["00000"]), code=1)["error"]
    assert "1 of 3 tasks are not done, 1 of 1 commands failed" in error["what"] and "00000 is broken" in error["what"]
    ledger = CurationRun.open(tmp_path / "run").ledger
    assert sorted(ledger.state("flaky:Flaky")) == [1, 2]
    assert (tmp_path / "run" / "closed").exists(), "what a worker holds is let go although a task failed"
    error = curate(flaky(tools, folder, ["00000", "00002"]), out="two", code=1)["error"]
    assert "2 of 3 tasks failed: 00000, 00002" in error["what"]


def test_a_worker_started_by_hand_does_what_is_left(crawl, tools, curate, tmp_path):
    tree = tools.recipe(crawl[0])
    tree["curation"]["stages"] = {"ingest": {}, "filter": {"min_side": 50}}
    curate(tree)
    curate(tree, "curation.stages.filter.min_side=51", "curation.executor.name=nobody:knows", code=2)
    by_hand = ["curate", "worker", str(tmp_path / "run"), "--stage", "filter", "--task"]
    assert main([*by_hand, "0-1"]) == 0 and main([*by_hand, "1"]) == 0
    ledger = CurationRun.open(tmp_path / "run").ledger
    assert [line.version for _, line in sorted(ledger.state("filter").items())] == [3, 3, 1]
    told = curate(tree, "curation.stages.filter.min_side=51")
    assert by_stage(told)["filter"]["done"] == 3 and not ledger.parts("filter")


LATE_EXECUTOR = """
import threading
from megavlm.platform.executor import TaskResult
from megavlm.platform.executor.in_process import InProcessExecutor

class Late:
    def run(self, job, *, workers):
        done = lambda: InProcessExecutor().run(job)
        threading.Timer(0.5, done).start()
        return [TaskResult(task, 0, 0.0, job.log_path(index)) for index, task in enumerate(job.tasks)]
"""


def test_marks_that_another_machine_made_may_be_seen_late(crawl, tools, curate, tmp_path, monkeypatch):
    (tmp_path / "late.py").write_text(LATE_EXECUTOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = tools.recipe(crawl[0])
    tree["curation"] |= {"stages": {"ingest": {}}, "executor": {"name": "late:Late"}}
    assert curate(tree)["funnel"][0]["done"] == 3


def test_the_list_of_an_earlier_version_is_said(done, tools, curate, tmp_path, capsys):
    curate(tools.recipe(done[0]))
    (tmp_path / "run" / "ledger" / "shards.json").write_text('[{"name": "00000", "url": "x", "size": 1}]')
    assert main(["curate", "status", str(tmp_path / "run")]) == 2
    assert "earlier version" in capsys.readouterr().err
    assert curate(tools.recipe(done[0]))["finished"]
