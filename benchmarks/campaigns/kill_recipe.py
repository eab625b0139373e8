"""What random_kills curates: the demo's crawl through every stage, captioned by a tiny model of random weights."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megavlm.data_curation.recaption.server import free_port
from megavlm.platform.demo.crawl import write_crawl
from megavlm.platform.shards import ShardReader

LEAKS = 6  # images of the crawl that are evaluation images too
TINY = Path(__file__).parents[2] / "tests" / "data_curation" / "recaption" / "serve_tiny.py"


def recipe(raw: Path, leaks: Path, model: Path, port: int, seed: int) -> dict[str, Any]:
    """Every stage there is for images."""
    stages: dict[str, Any] = {
        "ingest": {},
        "filter": {"min_side": 56, "max_aspect": 3.0, "min_contrast": 4.0},
        "decontaminate": {"against": {"planted": str(leaks)}},
        "embed": {"embedder": {"name": "timm", "model": "eva02_tiny_patch14_224", "image_size": 84, "pooling": "grid"}},
        "cluster": {"method": "hierarchical", "clusters": 12, "iterations": 4, "center": True, "parts": 2}
        | {"levels": [{"clusters": 3}]},
        "assign": {},
        "deduplicate": {"hash_radius": 60, "min_hash_quality": 0, "epsilon": 0.05, "confirm_radius": 80},
        "select": {"method": "balanced", "target": 150},
        "recaption": {"model": str(model), "endpoints": [f"http://127.0.0.1:{port}/v1"]}
        | {"parameters": {"max_tokens": 12, "temperature": 0.0}, "asking": {"concurrency": 4, "health": "/health"}},
        "check_captions": {"rules": ["length", "refusal", "repetition"]},
        "export": {"samples_per_shard": 20},
    }
    executor = {"name": "local", "workers": 2, "tasks_per_command": 2}
    return {
        "name": "random-kills",
        "seed": seed,
        "curation": {"source": {"path": str(raw)}, "stages": stages, "executor": executor},
    }


def plant(folder: Path, seed: int) -> tuple[Path, Path]:
    """A crawl in small shards, and a folder of evaluation images that are in it too."""
    write_crawl(folder / "raw", seed=seed)
    leaks = folder / "leaks"
    leaks.mkdir()
    reader = ShardReader(folder / "raw" / "00000.tar")
    for key in list(reader.keys())[:LEAKS]:
        fields = reader.read(key).fields
        if "jpg" in fields:
            (leaks / f"{key}.jpg").write_bytes(fields["jpg"])
    return folder / "raw", leaks


@contextlib.contextmanager
def tiny_server(folder: Path) -> Iterator[tuple[Path, int]]:
    """`transformers serve` on a model of random weights: (the model's folder, the port)."""
    port, model = free_port(), folder / "model"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(TINY), str(model), str(port)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            if server.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-2000:])
            time.sleep(0.2)
        yield model, port
    finally:
        server.kill()
        server.wait()
