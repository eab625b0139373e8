"""A small crawl in img2dataset's layout, and a recipe that curates it without torch."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image


@dataclasses.dataclass
class Raw:
    """One crawled sample: members of the tar by extension. None leaves a member out."""

    key: str
    members: dict[str, bytes | None]


def photo(seed: int, width: int = 120, height: int = 100) -> Image.Image:
    """A picture with structure at several scales, different for every seed."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for side in (3, 6, 12, 24):
        noise = (rng.random((side, side, 3)) * 255).astype(np.uint8)
        image += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((image / 4).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}) | options)
    return buffer.getvalue()


def raw(key: str, data: bytes, ext: str = "jpg", caption: str | None = "a photo", meta: bytes | None = None) -> Raw:
    meta = (
        json.dumps({"key": key, "url": f"https://example.org/{key}", "caption": caption}).encode()
        if meta is None
        else meta
    )
    return Raw(key, {ext: data, "txt": None if caption is None else caption.encode(), "json": meta})


def write_shard(folder: Path, name: str, samples: Sequence[Raw], lost: Sequence[str] = ()) -> Path:
    """{name}.tar, .parquet (all rows, `lost` ones as failed downloads) and _stats.json; returns the tar."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        for sample in samples:
            for ext, data in sample.members.items():
                if data is not None:
                    add_member(tar, f"{sample.key}.{ext}", data)
    rows = [
        {"key": sample.key, "url": f"https://example.org/{sample.key}", "status": "success", "error_message": None}
        for sample in samples
    ]
    rows += [
        {"key": key, "url": "https://example.org/", "status": "failed_to_download", "error_message": "HTTP Error 404"}
        for key in lost
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    stats = {"count": len(rows), "successes": len(samples), "failed_to_download": len(lost)}
    (folder / f"{name}_stats.json").write_text(json.dumps(stats))
    return folder / f"{name}.tar"


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def small_crawl(folder: Path, shards: int = 3, per_shard: int = 12) -> dict[str, str]:
    """Different photos, each shard's last sample a recompressed copy of its first; returns copy -> original."""
    copies = {}
    for s in range(shards):
        keys = [f"{s:05d}{i:04d}" for i in range(per_shard)]
        samples = [raw(key, encode(photo(1000 * s + i))) for i, key in enumerate(keys[:-1])]
        samples.append(raw(keys[-1], encode(photo(1000 * s), quality=40)))
        copies[keys[-1]] = keys[0]
        write_shard(folder, f"{s:05d}", samples, lost=[f"{s:05d}9999"])
    return copies


def recipe(source: Path, **stages: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the pixel baseline as features; keyword arguments change a stage's options."""
    base: dict[str, dict[str, Any]] = {
        "ingest": {},
        "filter": {"min_side": 50},
        "embed": {"embedder": {"name": "pixels"}},
        "cluster": {"clusters": 4, "center": True},
        "assign": {},
        "deduplicate": {"hash_radius": 31, "min_hash_quality": 0, "epsilon": 0.001},
        "select": {"nearest": 8},
        "export": {"samples_per_shard": 10},
    }
    merged = {name: options | stages.get(name, {}) for name, options in base.items()}
    executor = {"name": "in_process", "workers": 0}
    return {
        "name": "test",
        "seed": 3,
        "curation": {"source": {"path": str(source)}, "stages": merged, "executor": executor},
    }


def curated(folder: Path, tree: dict[str, Any]) -> Path:
    """FOLDER/run, with this recipe done: for a module whose tests each take a copy, and go on from there."""
    from megavlm.platform.cli import main

    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["curate", "run", str(file), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def crawl(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """(folder of raw shards, copy -> original)."""
    return tmp_path / "raw", small_crawl(tmp_path / "raw")


@pytest.fixture(scope="session")
def tools() -> Any:
    """This file's functions, since test folders are no packages."""
    import types

    names = ("Raw", "photo", "encode", "raw", "write_shard", "add_member", "small_crawl", "recipe", "curated")
    return types.SimpleNamespace(**{name: globals()[name] for name in names})


@pytest.fixture
def curate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """curate(recipe tree, *overrides, out="run") -> the verb's JSON; any exit code but `code` fails the test."""
    from megavlm.platform.cli import main

    def run(tree: dict[str, Any], *overrides: str, out: str = "run", code: int = 0) -> dict[str, Any]:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        exit_code = main(["curate", "run", str(file), *overrides, "--out", str(tmp_path / out), "--json"])
        captured = capsys.readouterr()
        assert exit_code == code, captured.err
        return json.loads(captured.out)

    return run
