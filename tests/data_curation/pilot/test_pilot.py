"""A pilot from the command line, on small crawls, tables of links and text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from megavlm.data_curation.run import CurationRun
from megavlm.platform.cli import main

pytestmark = pytest.mark.multiprocess
Pilot = Callable[..., dict[str, Any]]
STAGE = [
    "stage", "images_in", "kept", "seconds", "worker_seconds",
    "rate", "label", "disk_bytes", "memory_bytes", "note",
]  # fmt: skip


@pytest.fixture
def pilot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pilot:
    def run(tree: dict[str, Any], *words: str, out: str = "pilot", code: int = 0) -> dict[str, Any]:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        exit_code = main(["curate", "pilot", str(file), *words, "--out", str(tmp_path / out), "--json"])
        captured = capsys.readouterr()
        assert exit_code == code, captured.err
        return json.loads(captured.out)

    return run


def test_a_small_part_tells_of_the_whole(pilot: Pilot, curate: Callable[..., Any], tmp_path: Path, tools: Any) -> None:
    tools.small_crawl(tmp_path / "raw", shards=16)
    tree = tools.recipe(tmp_path / "raw", cluster={"clusters": 16}, select={"nearest": 11})
    told = pilot(tree, "--samples", "96")
    # 16 shards of 12 samples and a lost one; eight shards have the 96, which is every second one
    assert told["pilot"]["shards"] == 8
    assert told["pilot"]["samples"] == 8 * 13
    run = CurationRun.open(tmp_path / "pilot")
    assert list(run.plan.names) == [f"{number:05d}" for number in range(1, 16, 2)]
    assert run.config.stages["cluster"].clusters == 8
    assert told["pilot"]["scaled"] == {"curation.stages.cluster.clusters": {"full": 16, "pilot": 8}}
    assert told["source"]["samples"] == pytest.approx(16 * 13, rel=0.02)
    assert told["source"]["shards"] == 16
    stages = told["stages"]
    assert [stage["stage"] for stage in stages] == list(tree["curation"]["stages"])
    assert all(list(stage) == STAGE and stage["label"] == "measured" for stage in stages)
    assert all(stage["seconds"] >= 0 and stage["memory_bytes"] > 10_000_000 for stage in stages)
    assert 0 < sum(stage["seconds"] for stage in stages) < told["forecast"]["seconds"] < 10 * told["pilot"]["seconds"]
    assert any("duplicates" in warning for warning in told["warnings"])

    full = curate(tree, out="full")
    taken = sum(path.stat().st_size for path in (tmp_path / "full").rglob("*") if path.is_file())
    assert told["forecast"]["disk_bytes"] == pytest.approx(taken, rel=0.2)
    true = [line["kept"] for line in full["funnel"]]
    assert [stage["kept"] for stage in stages[:2]] == pytest.approx(true[:2], rel=0.05)
    assert told["forecast"]["images_out"] == pytest.approx(true[-1], rel=0.15)


def only(tree: dict[str, Any], *names: str) -> dict[str, Any]:
    """The recipe with some of its stages."""
    curation = tree["curation"]
    return tree | {"curation": curation | {"stages": {name: curation["stages"][name] for name in names}}}


def test_what_is_finished_is_not_done_again(pilot: Pilot, tmp_path: Path, crawl: Any, tools: Any) -> None:
    tree = only(tools.recipe(crawl[0]), "ingest", "filter", "export")
    first = pilot(tree)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pilot" / "export").iterdir()}
    again = pilot(tree)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pilot" / "export").iterdir()} == before
    assert len(CurationRun.open(tmp_path / "pilot").folder.attempts()) == 1
    assert again["pilot"] == first["pilot"]
    # one that was ended half-way goes on: of its last stage nothing is left, all others stay as they are
    (tmp_path / "pilot" / "finished").unlink()
    (tmp_path / "pilot" / "ledger" / "export" / "all.jsonl").unlink()
    assert pilot(tree)["forecast"]["images_out"] == first["forecast"]["images_out"]
    assert len(CurationRun.open(tmp_path / "pilot").folder.attempts()) == 2


def test_with_workers_all_have_something_to_do(pilot: Pilot, crawl: Any, tmp_path: Path, tools: Any) -> None:
    tree = only(tools.recipe(crawl[0]), "ingest", "filter")
    tree["curation"]["executor"] = {"name": "local", "workers": 2}
    told = pilot(tree)
    change = told["pilot"]["scaled"]["curation.executor.tasks_per_command"]
    assert change == {"full": 16, "pilot": 2}
    assert all(stage["memory_bytes"] for stage in told["stages"])
    assert told["forecast"]["memory_bytes_together"] > told["forecast"]["memory_bytes"]


def test_what_cannot_run_takes_a_rate_from_elsewhere(pilot: Pilot, crawl: Any, tools: Any, tmp_path: Path) -> None:
    embedder = {"name": "timm", "model": "eva02_tiny_patch14_224", "pretrained": str(tmp_path / "none.safetensors")}
    tree = only(tools.recipe(crawl[0], embed={"embedder": embedder}), "ingest", "filter", "embed", "export")
    stages = tree["curation"]["stages"]
    export = stages.pop("export")
    server = {"command": ["no-such-server", "--port", "{port}"], "gpus": 1, "replicas": 4}
    stages |= {"recaption": {"model": "m", "server": server}, "check_captions": {}, "export": export}
    told = pilot(tree)
    by_name = {stage["stage"]: stage for stage in told["stages"]}
    assert (by_name["recaption"]["label"], by_name["recaption"]["rate"]) == ("published", 4 * 1.01)
    assert "700,000 captions" in by_name["recaption"]["note"]
    assert "'no-such-server' is not installed" in by_name["recaption"]["note"]
    assert by_name["recaption"]["seconds"] == pytest.approx(by_name["recaption"]["images_in"] / 4.04, abs=0.01)
    assert by_name["embed"]["label"] == "guess"
    assert "none.safetensors" in by_name["embed"]["note"]
    assert by_name["check_captions"]["label"] == by_name["export"]["label"] == "measured"
    assert told["pilot"]["scaled"]["curation.stages.recaption"] == {"full": "run", "pilot": "left out"}
    assert told["pilot"]["scaled"]["curation.stages.embed.embedder"]["pilot"]["name"] == "pixels"
    assert sum("guess" in warning for warning in told["warnings"]) == 2


def test_links_are_counted_from_footers(pilot: Pilot, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    row = {"url": "http://x/a.jpg", "caption": "a dog", "width": 600, "height": 500}
    small = row | {"width": 100}
    for number in range(6):
        pq.write_table(pa.Table.from_pylist([row, row, row, small] * 50), folder / f"{number}.parquet")
    rules = {"min_side": 449, "max_punsafe": None, "max_pwatermark": None, "min_similarity": None}
    tree = {
        "name": "links",
        "curation": {
            "source": {"kind": "laion_metadata", "path": str(folder), "layout": "relaion"},
            "stages": {"links": {"rules": rules}},
            "executor": {"name": "in_process"},
        },
    }
    told = pilot(tree, "--samples", "400")
    assert told["source"] == {"samples": 1200, "shards": 6, "label": "counted"}
    assert (told["pilot"]["shards"], told["pilot"]["samples"]) == (2, 400)
    assert told["forecast"]["images_out"] == 900
    assert "img2dataset" in told["stages"][0]["note"]
    assert told["forecast"]["disk_bytes"] > 0


def test_text_is_tried_as_well(pilot: Pilot, tmp_path: Path) -> None:
    folder = tmp_path / "text" / "orca"
    folder.mkdir(parents=True)
    for number in range(5):
        rows = [{"question": f"What is {number} + {n}?", "answer": f"It is {number + n}."} for n in range(40)]
        (folder / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tree = {
        "name": "text",
        "curation": {
            "source": {"kind": "text", "path": str(tmp_path / "text"), "sets": {"orca": "orca_math"}},
            "stages": {"text_ingest": {}, "text_deduplicate": {}, "text_export": {}},
            "executor": {"name": "in_process"},
        },
    }
    told = pilot(tree, "--samples", "80")
    assert told["source"]["samples"] == pytest.approx(200, rel=0.03)
    assert (told["pilot"]["shards"], told["pilot"]["samples"]) == (2, 80)
    assert told["forecast"]["images_out"] == pytest.approx(200, rel=0.03)


def test_a_dry_run_tries_nothing(pilot: Pilot, crawl: Any, tools: Any, tmp_path: Path) -> None:
    told = pilot(tools.recipe(crawl[0]), "--samples", "12", "--dry-run")
    assert not (tmp_path / "pilot").exists()
    assert told["pilot"]["shards"] == 1
    assert told["source"]["shards"] == 3
    assert told["forecast"] is None


def test_people_get_a_table(crawl: Any, tools: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = only(tools.recipe(crawl[0]), "ingest")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert main(["curate", "pilot", str(tmp_path / "recipe.yaml"), "--samples", "1", "--out", str(tmp_path / "p")]) == 0
    out = capsys.readouterr().out
    assert "measured" in out
    assert "worker-hours" in out
    assert "note: one shard was tried" in out


@pytest.mark.parametrize("samples", ["0", "-3"])
def test_no_samples_are_refused(pilot: Pilot, crawl: Any, tools: Any, samples: str) -> None:
    assert pilot(tools.recipe(crawl[0]), "--samples", samples, code=2)["error"]["where"] == "--samples"


def test_no_shards_are_refused(pilot: Pilot, tools: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert pilot(tools.recipe(tmp_path / "empty"), code=2)["error"]["where"] == "curation.source.path"


def test_a_shard_that_is_not_there_is_refused(curate: Callable[..., Any], crawl: Any, tools: Any) -> None:
    tree = tools.recipe(crawl[0])
    tree["curation"]["only"] = ["00001", "00009"]
    assert curate(tree, code=2)["error"]["where"] == "curation.only"
