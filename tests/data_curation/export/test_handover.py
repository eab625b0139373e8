"""What stands beside the shards, against hashlib, tarfile, pandas and the raw crawl."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.export.division import Division
from megavlm.data_curation.run import CurationRun
from megavlm.platform.shards import ShardReader


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def provenance(run: Path) -> pd.DataFrame:
    """As a user reads it: one line."""
    return pd.read_parquet(run / "export" / "provenance")


def manifest(run: Path) -> dict:
    return json.loads((run / "export" / "manifest.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_manifest_hashes_every_file_and_adds_up(finished):
    told, export = manifest(finished), finished / "export"
    assert [shard["name"] for shard in told["shards"]] == sorted(path.stem for path in export.glob("*.tar"))
    for shard in told["shards"]:
        tar = export / f"{shard['name']}.tar"
        assert (shard["sha256"], shard["bytes"]) == (sha256(tar), tar.stat().st_size)
        assert shard["index_sha256"] == sha256(export / f"{shard['name']}.index.parquet")
        assert shard["provenance_sha256"] == sha256(export / "provenance" / f"{shard['name']}.parquet")
        with tarfile.open(tar) as members:
            keys = {name.partition(".")[0] for name in members.getnames()}
        assert (shard["samples"], shard["key_range"]) == (len(keys), [min(keys), max(keys)])
    assert told["statistics_sha256"] == sha256(export / "statistics.json")
    assert told["samples"] == sum(shard["samples"] for shard in told["shards"]) == 33
    assert (told["recipe"], told["seed"], told["removed"]["ids"]) == ("test", 3, 0)
    funnel = json.loads((finished / "funnel.json").read_text())
    counts = ("stage", "in", "kept", "dropped")
    assert told["funnel"] == [{name: line[name] for name in counts} for line in funnel]


def test_two_runs_hand_over_the_same_bytes_and_no_time(finished, again, tmp_path):
    again(out="second")
    assert files(tmp_path / "second" / "export") == files(finished / "export")


def test_the_same_command_again_leaves_the_hand_over_alone(finished, again):
    before = {path: path.stat().st_mtime_ns for path in (finished / "export").rglob("*")}
    again()
    assert {path: path.stat().st_mtime_ns for path in (finished / "export").rglob("*")} == before


def test_a_manifest_stands_only_where_the_export_is_whole(finished, again):
    """A task that begins takes it away; whatever ends the run then, the next one writes it."""
    before = files(finished / "export")
    for lost in ("manifest.json", "statistics.json"):
        (finished / "export" / lost).unlink()
    (finished / "export" / ".000000-00000.tar.abc.tmp").write_bytes(b"of a killed writer")
    again()
    assert files(finished / "export") == before


def test_provenance_has_a_row_per_sample_in_the_tars_order(finished):
    table, reader = provenance(finished), ShardReader(finished / "export")
    assert table["key"].tolist() == list(reader.keys()) and len(table) == 33
    for number, row in enumerate(table.to_dict("records")):
        sample = reader.read(number)
        assert row["sha256"] == hashlib.sha256(sample.fields["jpg"]).hexdigest()
        assert row["filter.bytes"] == len(sample.fields["jpg"])
        source = sample.json()["source"]
        assert (row["source_shard"], row["source_key"]) == (source["shard"], source["key"])
        assert row["url"] == source["metadata"]["url"] == f"https://example.org/{row['source_key']}"
        assert (row["caption_words"], row["caption_origin"]) == (2, "source")


def test_provenance_says_what_every_stage_decided_and_measured(finished):
    table = provenance(finished).set_index("key")
    stages = ("ingest", "filter", "embed", "assign", "deduplicate", "select")
    assert all(table[f"{stage}.keep"].all() for stage in stages)
    sidecars = {stage: pd.concat(map(pd.read_parquet, (finished / stage).glob("*.parquet"))) for stage in stages}
    for stage, column in (("assign", "cosine"), ("assign", "cluster"), ("select", "rank")):
        expected = sidecars[stage].set_index("key").loc[table.index, column]
        assert table[f"{stage}.{column}"].tolist() == expected.tolist()


def test_no_content_stands_in_provenance(finished):
    data = b"".join(path.read_bytes() for path in (finished / "export" / "provenance").iterdir())
    names = {name for path in (finished / "export" / "provenance").iterdir() for name in pq.read_schema(path).names}
    assert not {name for name in names if name.rpartition(".")[2] in {"caption", "metadata", "messages", "detail"}}
    assert b"a photo" not in data


def test_statistics_agree_with_pandas(finished):
    told, table = json.loads((finished / "export" / "statistics.json").read_text()), provenance(finished)
    assert told["samples"] == len(table)
    assert told["formats"] == table["filter.format"].value_counts().to_dict() == {"JPEG": 33}
    assert told["caption_origins"] == {"source": 33}
    assert {name: facts["samples"] for name, facts in told["source_shards"].items()} == (
        table["source_shard"].value_counts().to_dict()
    )
    assert {name: facts["bytes"] for name, facts in told["source_shards"].items()} == (
        table.groupby("source_shard")["filter.bytes"].sum().to_dict()
    )
    sizes = table["assign.cluster"].value_counts().to_numpy()
    columns = {"bytes": table["filter.bytes"], "cosine_to_centroid": table["assign.cosine"], "cluster_size": sizes}
    columns |= {"width": table["filter.width"], "aspect": table["filter.width"] / table["filter.height"]}
    for name, values in columns.items():
        found = told["distributions"][name]
        assert (found["count"], found["missing"]) == (len(values), 0)
        assert found["least"] == pytest.approx(min(values), rel=1e-5)
        assert found["greatest"] == pytest.approx(max(values), rel=1e-5)
        assert sum(found["histogram"]["counts"]) == len(values)
        for share, value in found["quantiles"].items():
            low, high = (np.quantile(values, float(share), method=way) for way in ("lower", "higher"))
            assert low * 0.98 - 0.002 <= value <= high * 1.02 + 0.002


def test_texts_are_handed_over_by_the_same_means(texts, verb):
    told, export = manifest(texts), texts / "export"
    assert [(shard["name"], shard["samples"]) for shard in told["shards"]] == [
        *(("math--all-00000", 4), ("math--all-00001", 4), ("math--all-00002", 4), ("talk--all-00000", 4)),
    ]
    table = provenance(texts)
    assert table["key"].tolist() == list(ShardReader(export).keys())
    assert table.groupby("set").size().to_dict() == {"math": 12, "talk": 4}
    sets = json.loads((export / "statistics.json").read_text())["sets"]
    assert sets["talk"]["rows"] == 5 and sets["talk"]["samples"] == 4 and sets["talk"]["turns"] == 8
    assert sets["talk"]["dropped"] == {"text_ingest/empty_turn": 1}
    assert verb("data verify", export)["problems"] == []


def test_other_options_leave_no_shard_of_before(texts, verb):
    from megavlm.platform.cli import main

    recipe = texts.parent / "texts.yaml"
    override = "curation.stages.text_export.samples_per_shard=100"
    assert main(["curate", "run", str(recipe), override, "--out", str(texts)]) == 0
    assert sorted(path.name for path in (texts / "export").glob("*.tar")) == [
        "math--all-00000.tar",
        "talk--all-00000.tar",
    ]
    assert len(list((texts / "export" / "provenance").iterdir())) == 2
    assert verb("data verify", texts / "export")["problems"] == []


def test_verify_names_what_is_not_as_it_was(finished, verb, tmp_path):
    export = finished / "export"
    assert verb("data verify", export)["problems"] == []
    data = bytearray((export / "000001-00000.tar").read_bytes())
    data[700] ^= 1
    (export / "000001-00000.tar").write_bytes(data)
    (export / "provenance" / "000002-00000.parquet").unlink()
    (export / "extra.tar").write_bytes(b"")
    assert verb("data verify", export, code=3)["problems"] == [
        {"file": "000001-00000.tar", "problem": "differs"},
        {"file": "provenance/000002-00000.parquet", "problem": "missing"},
        {"file": "extra.tar", "problem": "not in the manifest"},
    ]
    (export / "manifest.json").unlink()
    assert "no manifest.json" in verb("data verify", export, code=2)["error"]["what"]


def test_two_sources_may_share_keys(tools, again, tmp_path, verb):
    """Of equal keys both are exported, each under its shard's name, and inspect finds both."""
    samples = [tools.raw(f"{i:04d}", tools.encode(tools.photo(i))) for i in range(7)]
    tools.write_shard(tmp_path / "raw", "a", samples)
    others = [tools.raw(f"{i:04d}", tools.encode(tools.photo(90 + i))) for i in range(5, 9)]
    tools.write_shard(tmp_path / "raw", "b", others)
    import yaml

    tree = tools.recipe(tmp_path / "raw", select={"nearest": 100}, export={"samples_per_shard": 3})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    again()
    assert list(ShardReader(tmp_path / "run" / "export").keys()) == [
        *(f"{i:04d}" for i in range(5)), "a-0005", "a-0006", "b-0005", "b-0006", "0007", "0008",
    ]  # fmt: skip
    run = CurationRun.open(tmp_path / "run")
    division = Division(run, "export", 3)
    assert division.shared == {"0005", "0006"}
    covered = [(piece.shard.name, row) for task in range(division.tasks) for piece in division.pieces(task)
               for row in range(piece.start, piece.stop)]  # fmt: skip
    assert covered == [("a", row) for row in range(7)] + [("b", row) for row in range(4)]
    for word, expected in (("0005", [("a", "a-0005"), ("b", "b-0005")]), ("b-0006", [("b", "b-0006")])):
        found = verb("curate inspect", tmp_path / "run", word)["samples"]
        assert [(one["shard"], one["export"]["key"]) for one in found] == expected
