"""A sample is found by whatever name it has, in a run and in an export alone."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest

from megavlm.platform.storage import read_range


def row_of(run: Path, key: str) -> pd.Series:
    return pd.read_parquet(run / "export" / "provenance").set_index("key", drop=False).loc[key]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", ["key", "url", "sha256"])
def test_by_key_url_or_hash_the_life_and_the_place_are_told(finished, verb, tmp_path, alone, kind):
    row = row_of(finished, "000010003")
    place = shutil.move(finished / "export", tmp_path / "elsewhere") if alone else finished
    [life] = verb("curate inspect", place, row[kind].upper() if kind == "sha256" else row[kind])["samples"]
    assert (life["shard"], life["key"], life["url"]) == ("00001", "000010003", "https://example.org/000010003")
    stages = {one["stage"]: one for one in life["stages"]}
    assert set(stages) == {"ingest", "filter", "embed", "assign", "deduplicate", "select"}
    assert stages["filter"]["width"] == 120 and stages["select"]["rank"] == row["select.rank"]
    where = life["export"]["members"]["jpg"]
    tar = (Path(place) if alone else finished / "export") / f"{life['export']['shard']}.tar"
    assert hashlib.sha256(read_range(tar, where["offset"], where["size"])).hexdigest() == row["sha256"]


def test_what_was_dropped_is_found_in_the_run_by_all_its_names(finished, verb):
    rejected = pd.read_parquet(finished / "rejected.parquet")
    key = rejected[rejected["reason"].str.startswith("duplicate")]["key"].iloc[0]
    sha256 = pd.concat(map(pd.read_parquet, (finished / "filter").glob("*.parquet"))).set_index("key")["sha256"][key]
    for word in (key, f"https://example.org/{key}", sha256):
        [life] = verb("curate inspect", finished, word)["samples"]
        assert (life["key"], life["export"], life["removed"]) == (key, None, None)
        assert life["stages"][-1]["reason"].startswith("duplicate")


def test_an_unfinished_run_tells_what_is_known(finished, verb):
    (finished / "finished").unlink()
    shutil.rmtree(finished / "export")
    [life] = verb("curate inspect", finished, "000010003")["samples"]
    assert [one["stage"] for one in life["stages"]][0] == "ingest" and life["export"] is None


@pytest.mark.parametrize("word", ["nothing", "https://example.org/nothing", "0" * 64])
def test_what_is_nowhere_exits_2(finished, verb, tmp_path, word):
    assert "no sample" in verb("curate inspect", finished, word, code=2)["error"]["what"]
    assert (
        "no sample"
        in verb("curate inspect", shutil.copytree(finished / "export", tmp_path / "x"), word, code=2)["error"]["what"]
    )


def test_a_folder_that_is_neither_is_refused(verb, tmp_path):
    assert "neither a run nor an export" in verb("curate inspect", tmp_path, "x", code=2)["error"]["what"]


def test_a_key_opens_only_the_files_whose_range_holds_it(finished, verb):
    """The others may even be unreadable."""
    for path in (finished / "export" / "provenance").iterdir():
        if path.stem != "000001-00000":
            path.write_bytes(b"not looked at")
    key = pd.read_parquet(finished / "export" / "provenance" / "000001-00000.parquet")["key"].iloc[4]
    assert verb("curate inspect", finished, key)["samples"][0]["export"]["shard"] == "000001-00000"
