"""Every source gives the same samples: keys, captions, metadata and the image's bytes, from a disk or a bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.source import Plan
from megavlm.data_curation.sources.folder import Folder
from megavlm.data_curation.sources.parse import parse_source
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.shards import BadMember, Sample, ShardReader

N = 7


@pytest.fixture
def photos(tools) -> list[bytes]:
    return [tools.encode(tools.photo(40 + i)) for i in range(N)]


def caption(i: int) -> str:
    return f"a photo, number {i} – naïve"


def as_folder(root: Path, photos: list[bytes]) -> dict:
    for i, data in enumerate(photos):
        (root / f"s{i % 2}").mkdir(parents=True, exist_ok=True)
        (root / f"s{i % 2}" / f"{i}.jpg").write_bytes(data)
        (root / f"s{i % 2}" / f"{i}.txt").write_text(caption(i))
        (root / f"s{i % 2}" / f"{i}.json").write_text(json.dumps({"number": i}))
    return {"kind": "folder", "path": str(root), "samples_per_shard": 3}


def as_captions_file(root: Path, photos: list[bytes]) -> dict:
    root.mkdir(parents=True)
    lines = []
    for i, data in enumerate(photos):
        (root / f"{i}.jpg").write_bytes(data)
        lines.append(json.dumps({"file_name": f"{i}.jpg", "text": caption(i), "number": i}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return {"kind": "folder", "path": str(root), "samples_per_shard": 3}


def as_hf(root: Path, photos: list[bytes]) -> dict:
    import datasets

    root.mkdir(parents=True)
    rows = {
        "image": [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(photos)],
        "text": [caption(i) for i in range(N)],
        "number": list(range(N)),
    }
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "number": datasets.Value("int64")}
    )
    whole = datasets.Dataset.from_dict(rows, features=features)
    for part in range(2):
        whole.shard(2, part, contiguous=True).to_parquet(str(root / f"train-{part:05d}-of-00002.parquet"))
    return {"kind": "hf", "path": str(root), "key": "number"}


def as_llava(root: Path, photos: list[bytes]) -> dict:
    (root / "images").mkdir(parents=True)
    records = []
    for i, data in enumerate(photos):
        (root / "images" / f"{i}.jpg").write_bytes(data)
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": caption(i)}]
        records.append({"id": f"{i}", "image": f"{i}.jpg", "conversations": turns, "number": i})
    (root / "data.json").write_text(json.dumps(records))
    images = str(root / "images")
    return {"kind": "llava_json", "path": str(root / "data.json"), "images": images, "samples_per_shard": 3}


MAKERS = {"folder": as_folder, "captions": as_captions_file, "hf": as_hf, "llava": as_llava}


def samples(source: dict, scratch: Path) -> list[Sample]:
    """Everything a source gives, read through a plan as a run's tasks read it."""
    parsed = parse_source(source, "curation.source")
    found = parsed.find(scratch / "ledger" / "members")

    shards = Plan.parse(Plan.of(found).save(), "here").shards(parsed, scratch)
    items = [item for shard in shards for item in parsed.read(shard)]
    assert all(isinstance(item, Sample) for item in items), items
    return items


def numbered(items: list[Sample]) -> dict[int, Sample]:
    return {item.json()["number"]: item for item in items}


@pytest.mark.parametrize("kind", MAKERS)
def test_keys_captions_metadata_and_bytes_survive(kind, photos, tmp_path):
    found = samples(MAKERS[kind](tmp_path / "raw", photos), tmp_path)
    by_number = numbered(found)
    assert set(by_number) == set(range(N)) and len({item.key for item in found}) == N == len(found)
    for i, item in by_number.items():
        assert item.fields["jpg"] == photos[i] and item.text() == caption(i)
        assert item.key in (f"{i}", f"s{i % 2}/{i}")


@pytest.mark.parametrize("kind", MAKERS)
def test_the_whole_pipeline_runs_on_it(kind, photos, tools, curate, tmp_path):
    tree = tools.recipe(tmp_path / "raw", select={"nearest": 100}, cluster={"clusters": 1})
    tree["curation"]["source"] = MAKERS[kind](tmp_path / "raw", photos)
    told = curate(tree)
    assert told["funnel"][0]["kept"] == told["funnel"][-1]["kept"] == N
    reader = ShardReader(tmp_path / "run" / "export")
    out = [reader.read(place) for place in range(len(reader))]
    assert {one.json()["source"]["metadata"]["number"]: one.fields["jpg"] for one in out} == dict(enumerate(photos))
    assert {one.text() for one in out} == {caption(i) for i in range(N)}
    moved = tmp_path / "run"
    moved.rename(tmp_path / "elsewhere")
    run = CurationRun.open(tmp_path / "elsewhere")
    assert sum(1 for shard in run.shards for _ in shard.source.read(shard)) == N, "a run that was moved reads on"


def test_order_and_lists_are_the_same_every_time_and_tell_a_change(photos, tmp_path):
    source = Folder.parse(as_folder(tmp_path / "raw", photos))
    first, again = ([vars(shard) | {"source": 0} for shard in source.find(tmp_path / name)] for name in "ab")
    was = [shard["url"].rsplit("/", 1)[-1] for shard in first]
    assert was == [shard["url"].rsplit("/", 1)[-1] for shard in again] and len(was) == 3
    os.utime(tmp_path / "raw" / "s1" / "5.jpg", ns=(1, 1))
    changed = [shard.url.rsplit("/", 1)[-1] for shard in source.find(tmp_path / "a")]
    assert [new == old for new, old in zip(changed, was, strict=True)] == [True, True, False]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(changed), "old lists are gone"


def bad(source: dict, scratch: Path) -> dict[str, str]:
    parsed = parse_source(source, "curation.source")
    shards = parsed.find(scratch / "ledger" / "members")

    items = [item for shard in Plan.of(shards).shards(parsed, scratch) for item in parsed.read(shard)]
    return {item.key: item.reason for item in items if isinstance(item, BadMember)}


def test_a_folders_odd_members_are_named(photos, tmp_path):
    source = as_captions_file(tmp_path / "raw", photos)
    (tmp_path / "secret.jpg").write_bytes(photos[0])
    (tmp_path / "raw" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "raw" / "a.b.jpg").write_bytes(photos[0])
    (tmp_path / "raw" / "a_b.jpg").write_bytes(photos[0])
    with (tmp_path / "raw" / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "gone.jpg", "text": "x"}\n{"file_na\n[1]\n')
    reasons = bad(source, tmp_path)
    assert reasons.pop("link") == "unsafe_name" and reasons.pop("gone_jpg") == "missing_image"
    assert reasons.pop("a_b") == "duplicate_key" and set(reasons.values()) == {"invalid_json"} and len(reasons) == 2


def test_llavas_odd_records_are_named(photos, tmp_path):
    source = as_llava(tmp_path / "raw", photos)
    (tmp_path / "secret.jpg").write_bytes(photos[0])
    records = json.loads((tmp_path / "raw" / "data.json").read_text())
    odd = [
        {"id": "text only", "conversations": []},
        {"id": "out", "image": "../../secret.jpg"},
        {"id": "two", "image": ["0.jpg", "1.jpg"]},
        {"id": "gone", "image": "gone.jpg"},
        {"id": "0", "image": "1.jpg"},
        "no record",
        {"id": {"a": 1}, "image": 5},
    ]
    (tmp_path / "raw" / "data.json").write_text(json.dumps([*records, *odd])[:-1] + ', {"id": "cut')
    reasons = bad(source, tmp_path)
    assert reasons.pop("out") == "unsafe_name" and reasons.pop("0") == "duplicate_key"
    assert reasons.pop("record-12") == "invalid_json" and reasons.pop("record-14") == "invalid_json"
    assert set(reasons) == {"text_only", "two", "gone", "__a___1_"} and set(reasons.values()) == {"missing_image"}


def test_what_holds_nothing_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in ({"kind": "folder"}, {"kind": "hf"}, {}, {"kind": "llava_json", "images": str(tmp_path)}):
        with pytest.raises(InputError, match="empty"):
            parse_source({"path": str(tmp_path / "empty" / "none"), **source}, "curation.source").find(tmp_path / "m")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "empty" / "x.parquet")
    with pytest.raises(InputError) as told:
        samples({"kind": "hf", "path": str(tmp_path / "empty")}, tmp_path)
    assert "x.parquet" in str(told.value) and "text" in str(told.value)


@pytest.mark.parametrize("source", [{"kind": "folders", "path": "x"}, {"kind": 3}, "x", {"path": "x", "layout": "y"}])
def test_a_wrong_source_says_where(source):
    with pytest.raises(ConfigError) as told:
        parse_source(source, "curation.source")
    assert "curation.source" in str(told.value)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """An S3 server of moto's in its own process; gives its URL and puts it in the environment that s3fs reads."""
    pytest.importorskip("moto"), pytest.importorskip("s3fs")
    log = tmp_path_factory.mktemp("s3") / "log"
    code = (
        "from moto.server import ThreadedMotoServer as S; import time; s = S(port=0, verbose=False); s.start();"
        "print(s.get_host_and_port()[1], flush=True); time.sleep(120)"
    )
    with log.open("w") as errors:
        server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        _wait(url)
        yield url
    finally:
        server.kill()
        server.wait()


def _wait(url: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def upload(root: Path, target: str) -> None:
    fs, place = fsspec.core.url_to_fs(target)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            fs.makedirs(place, exist_ok=True)
            fs.pipe_file(f"{place}/{path.relative_to(root).as_posix()}", path.read_bytes())


@pytest.mark.parametrize("protocol", ["s3", "memory"])
def test_a_bucket_gives_what_a_disk_gives(protocol, photos, tools, tmp_path, monkeypatch, request):
    if protocol == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("bucket"))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        fsspec.filesystem("s3").mkdir("raw-pairs")
    for kind, make in MAKERS.items():
        local = make(tmp_path / kind, photos)
        target = f"{protocol}://raw-pairs/{kind}"
        upload(tmp_path / kind, target)
        there = {key: value.replace(str(tmp_path / kind), target) if isinstance(value, str) else value
                 for key, value in local.items()}  # fmt: skip
        here, far = samples(local, tmp_path / "here"), samples(there, tmp_path / "far")
        assert [(item.key, item.fields) for item in far] == [(item.key, item.fields) for item in here], kind
    tools.small_crawl(tmp_path / "tars", shards=1, per_shard=3)
    upload(tmp_path / "tars", f"{protocol}://raw-pairs/tars")
    far = parse_source({"path": f"{protocol}://raw-pairs/tars"}, "curation.source")
    (shard,) = far.find(tmp_path / "m")
    assert len([item for item in far.read(shard) if isinstance(item, Sample)]) == 3 and len(far.listed(shard)[0]) == 4


def test_damage_inside_a_parquet_file_costs_its_row_group(photos, tmp_path):
    (tmp_path / "raw").mkdir()
    table = pa.table({"image": photos * 2, "text": ["x"] * (2 * N)})
    file = tmp_path / "raw" / "x.parquet"
    pq.write_table(table, file, row_group_size=N, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(file.read_bytes())
    data[data.index(photos[2]) + 100] ^= 1
    file.write_bytes(data)
    parsed = parse_source({"kind": "hf", "path": str(tmp_path / "raw")}, "curation.source")
    items = list(parsed.read(parsed.find(tmp_path)[0]))
    assert isinstance(items[0], BadMember) and items[0].reason == "corrupt_parquet" and f"{N} rows" in items[0].name
    assert [item.key for item in items[1:]] == [f"x-{place:06d}" for place in range(N, 2 * N)]
