"""Campaign: 200 damaged tars, Parquet files, JSON files and CSVs. Does each cost itself alone, with a reason?

`make campaign NAME=fuzz_shards` takes a minute; the result is fuzz_shards.md beside this file. Every file is given to
all readers that might meet its like, through the stages themselves. Exits with 3 when one raised anything but a refusal
that names the file, killed the process, or hung; or when a sample was dropped without a reason.
"""

from __future__ import annotations

import functools
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import campaign

from megavlm.data_curation.run import CurationRun
from megavlm.platform.demo.photos import photo
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import RunFolder

TITLE = "Damaged shards: read, read in part, or refused by name"
COUNT, SEED = 200, 1
SAMPLES = 6
INGEST = {"ingest": {}, "filter": {"min_side": 10}}
RULES = {"links": {"rules": {"max_punsafe": 0.5, "languages": ["en"]}}}
# What a damaged file is taken for: its name, the source, and the stages that read it.
Reader = tuple[str, dict[str, str], dict[str, Any]]
TAR: list[Reader] = [("0.tar", {}, INGEST)]
PARQUET: list[Reader] = [
    ("0.parquet", {"kind": "hf"}, INGEST),
    ("metadata.parquet", {"kind": "folder"}, INGEST),
    ("0.parquet", {"kind": "laion_metadata"}, RULES),
]
TEXT: list[Reader] = [
    ("metadata.jsonl", {"kind": "folder"}, INGEST),
    ("metadata.csv", {"kind": "folder"}, INGEST),
    ("data.json", {"kind": "llava_json"}, INGEST),
]
# Beside an intact tar: what is wrong with them costs the tar's samples nothing.
BESIDE: dict[str, Reader] = {"parquet": ("0.parquet", {}, INGEST), "text": ("0_stats.json", {}, INGEST)}
MEMORY = Path("/dev/shm")  # what the stages write is flushed to disk, for thousands of files


@functools.cache
def pictures() -> list[bytes]:
    """Small JPEGs that the filter keeps."""
    files = []
    for place in range(SAMPLES):
        out = io.BytesIO()
        photo("coffee").crop((60 * place, 150, 60 * place + 60, 200)).save(out, "JPEG")
        files.append(out.getvalue())
    return files


def seeds() -> dict[str, bytes]:
    """One intact file of every kind, and some whose values have the wrong types."""
    rows = [{"file_name": f"{i}.jpg", "text": f"caption {i}", "n": i} for i in range(SAMPLES)]
    sides = {"original_width": 60, "original_height": 50, "width": 60, "height": 50}
    listed = [{"key": f"{i}", "url": "https://x.org", "status": "success", **sides} for i in range(SAMPLES)]
    links = [
        {"URL": f"https://x.org/{i}", "TEXT": f"caption {i}", "WIDTH": 500, "HEIGHT": 400, "punsafe": 0.1 * i,
         "pwatermark": 0.2, "similarity": 0.3, "LANGUAGE": "en"} for i in range(SAMPLES)
    ]  # fmt: skip
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "An answer."}]
    llava = [{"id": f"{i}", "image": f"{i}.jpg", "conversations": turns} for i in range(SAMPLES)]
    images = [{"image": {"bytes": data, "path": None}, "text": "caption"} for data in pictures()]
    odd: list[Any] = [
        3,
        None,
        [],
        {"id": [], "image": {}, "conversations": 7},
        {"image": "0.jpg", "conversations": [1, {"from": 2}]},
    ]
    wrong = [{"URL": 1, "TEXT": 2.5, "WIDTH": "wide", "HEIGHT": None, "punsafe": "x", "LANGUAGE": 4, "key": None}]
    return {
        "tar": a_tar(),
        "listed Parquet": table(listed),
        "stats": json.dumps({"count": SAMPLES, "successes": SAMPLES}).encode(),
        "images Parquet": table(images),
        "links Parquet": table(links),
        "captions Parquet": table(rows),
        "JSON lines": "\n".join(map(json.dumps, rows)).encode(),
        "CSV": "\n".join(["file_name,text", *(f'{i}.jpg,"caption, {i}"' for i in range(SAMPLES))]).encode(),
        "LLaVA": json.dumps(llava).encode(),
        "LLaVA, wrong types": json.dumps([*odd, *llava]).encode(),
        "JSON lines, wrong types": "\n".join(map(json.dumps, [*odd, *rows])).encode(),
        "Parquet, wrong types": table(wrong),
        "deep JSON": b"[" * 50_000,
    }


def table(rows: list[dict[str, Any]]) -> bytes:
    """A Parquet file of two row groups."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=max(1, len(rows) // 2))
    return out.getvalue()


def a_tar() -> bytes:
    """A shard as img2dataset writes it, one name in it that is no UTF-8."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for place, data in enumerate([*pictures(), pictures()[0]]):
            key = f"{place}" if place < SAMPLES else "\udcff"
            for ext, content in (("jpg", data), ("txt", b"caption"), ("json", b'{"n": 1}')):
                member = tarfile.TarInfo(f"{key}.{ext}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def judge(data: bytes) -> str:
    """The best that any reader made of a file: "read", "part", "nothing" (all dropped, with reasons) or "refused"."""
    if b"PAR1" in (data[:4], data[-4:]):
        kind, readers = "parquet", PARQUET
    else:
        kind, readers = ("text", TEXT) if b"\0" not in data else ("tar", TAR)
    if kind in BESIDE:
        verdict(data, *BESIDE[kind])
    return min((verdict(data, *reader) for reader in readers), key=("read", "part", "nothing", "refused").index)


def verdict(data: bytes, name: str, source: dict[str, str], stages: dict[str, Any]) -> str:
    """What one reader made of it."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as place:
        raw = Path(place, "raw")
        raw.mkdir()
        if "kind" not in source:
            (raw / "0.tar").write_bytes(a_tar())
        if source.get("kind") in ("folder", "llava_json"):
            for number, picture in enumerate(pictures()):
                (raw / f"{number}.jpg").write_bytes(picture)
        (raw / name).write_bytes(data)
        path = str(raw / name) if source.get("kind") == "llava_json" else str(raw)
        images = {"images": str(raw)} if source.get("kind") == "llava_json" else {}
        return outcome(Path(place), {"path": path, **source, **images}, stages, name)


def outcome(place: Path, source: dict[str, str], stages: dict[str, Any], name: str) -> str:
    """Run the stages; raises on anything but a reason or a refusal that names the file."""
    run = CurationRun.open(
        RunFolder.create(place / "run", {"curation": {"source": source, "stages": stages}}, {}, []).root
    )
    told = []
    try:
        run.make_plan()
        for stage in run.config.stages:
            for tasks in stage.rounds(run):
                worker = stage.worker(run)
                told += [worker(task) for task in tasks]
            stage.finish(run)
    except (InputError, ConfigError) as error:
        if name not in str(error):
            raise AssertionError(f"the refusal names no file: {error}") from error
        return "refused"
    if any(one.received != one.kept + sum(one.dropped.values()) for one in told):
        raise AssertionError(f"a sample was dropped without a reason: {told}")
    if not told[-1].kept:
        return "nothing"
    return "part" if any(one.dropped for one in told) else "read"


if __name__ == "__main__":
    sys.exit(campaign(Path(__file__), seeds(), judge, TITLE, COUNT, SEED))
