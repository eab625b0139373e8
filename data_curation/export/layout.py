"""Where things lie in an export folder. The shards stand at its top, so that any reader of shards reads the folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

MANIFEST = "manifest.json"
STATISTICS = "statistics.json"
REMOVED = "removed.jsonl"
PROVENANCE = "provenance"
INDEX = ".index.parquet"


def tar_path(export: Path, name: str) -> Path:
    """The tar of shard `name`."""
    return export / f"{name}.tar"


def provenance_path(export: Path, name: str) -> Path:
    """One row per sample of shard `name`, in its order."""
    return export / PROVENANCE / f"{name}.parquet"


def shard_names(export: Path) -> list[str]:
    """The shards in order of name: those with provenance, which is written last."""
    found = (export / PROVENANCE).glob("*.parquet")
    return sorted(path.stem for path in found if not path.name.startswith("."))


def begin_change(export: Path) -> None:
    """Withdraw the manifest before a shard is written: where it stands, the export is whole."""
    (export / MANIFEST).unlink(missing_ok=True)


def tidy(export: Path, names: Collection[str]) -> None:
    """Remove shards other than `names`, and what killed writers left beside their targets."""
    valid = set(names)
    for path in export.glob("*"):
        stem = path.name.removesuffix(INDEX).removesuffix(".tar")
        if path.is_file() and stem not in valid and path.name not in {MANIFEST, STATISTICS, REMOVED}:
            path.unlink()
    for path in (export / PROVENANCE).glob("*"):
        if path.name.removesuffix(".parquet") not in valid:
            path.unlink()


def sweep_leftovers(export: Path) -> None:
    """Remove what killed writers left beside their targets: it may hold samples."""
    for folder in (export, export / PROVENANCE):
        for path in folder.glob(".*.tmp"):
            path.unlink()
