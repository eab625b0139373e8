"""Curation's recaption stage, asking `megavlm serve`: what the curation room sends is what the server takes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.platform.cli import main


def crawl(folder: Path, images: dict[str, bytes]) -> Path:
    """One shard as img2dataset writes it."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for key, image in images.items():
            about = {"key": key, "url": f"https://example.org/{key}", "caption": f"photo {key}"}
            for ending, data in (
                ("png", image),
                ("txt", about["caption"].encode()),
                ("json", json.dumps(about).encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    rows = [
        {"key": key, "url": f"https://example.org/{key}", "status": "success", "error_message": None} for key in images
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text(
        json.dumps({"count": len(rows), "successes": len(rows), "failed_to_download": 0})
    )
    return folder


def test_recaptions_twenty_images(
    server: Any, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TEST_SERVE_KEY", tools.TOKEN)
    asking = {"concurrency": 8, "attempts": 2, "timeout_seconds": 30.0, "health": "/health"}
    recaption = {
        "endpoints": [server.url],
        "model": tools.NAME,
        "parameters": {"max_tokens": 8, "temperature": 0.0},
        "asking": asking | {"api_key_env": "TEST_SERVE_KEY"},
    }
    raw = crawl(tmp_path / "raw", {f"{number:05d}": tools.picture(number, 56, 56) for number in range(20)})
    stages = {"ingest": {}, "recaption": recaption}
    curation = {"source": {"path": str(raw)}, "stages": stages, "executor": {"name": "in_process", "workers": 0}}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "captions", "seed": 1, "curation": curation}))
    assert main(["curate", "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (table,) = (tmp_path / "run" / "recaption").glob("*.parquet")
    rows = pq.read_table(table).to_pylist()
    assert told["funnel"][-1]["kept"] == 20 == sum(row["keep"] for row in rows)
    assert all(row["caption"] and row["finish_reason"] in ("stop", "length") for row in rows)
    assert len({row["caption"] for row in rows}) > 5, "the captions are of the images"
