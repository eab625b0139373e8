"""What a curation of a crawl made by `crawl` has to be like, judged by brute force from its files alone.

Nothing here is computed by the stages' own code: Parquet, zarr and tars are read by their libraries, distances and
cosines are numpy's.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr

HASH_RADIUS, LEAST_QUALITY = 58, 20  # ../hash_radius.md measured them on pictures of other seeds
TIE = 1e-6  # of a cosine: float32's sums may put two images the other way round
Truth = dict[str, Any]


def recipe(source: Path, clusters: int, nearest: int, embedder: dict[str, Any], executor: dict[str, Any]) -> Truth:
    """The whole pipeline with an untrained, shrunk EVA-02; bytes and PDQ alone find duplicates."""
    stages = {
        "ingest": {},
        "filter": {"min_side": 64, "max_aspect": 3.0, "min_contrast": 4.0},
        "embed": {"embedder": {"name": "timm", "model": "eva02_tiny_patch14_224", "resize": "squash"} | embedder},
        "cluster": {"clusters": clusters, "iterations": 20, "center": True},
        "assign": {},
        "deduplicate": {"hash_radius": HASH_RADIUS, "min_hash_quality": LEAST_QUALITY, "epsilon": None},
        "select": {"nearest": nearest},
        "export": {"samples_per_shard": 500},
    }
    curation = {"source": {"path": str(source)}, "stages": stages, "executor": executor}
    return {"name": "at-size", "seed": 1, "curation": curation}


def rows(run: Path, stage: str, columns: list[str]) -> list[dict[str, Any]]:
    """A stage's sidecars, shard after shard."""
    paths = sorted(path for path in (run / stage).glob("*.parquet") if path.stem.isdigit())
    return [row for path in paths for row in pq.read_table(path, columns=columns).to_pylist()]


def funnel_faults(run: Path, truth: Truth) -> list[str]:
    """Where the counts of the stages, of rejected.parquet and of the exported tars do not add up."""
    funnel = json.loads((run / "funnel.json").read_text())
    rejected = pq.read_table(run / "rejected.parquet").to_pylist()
    listed = Counter((row["stage"], row["reason"]) for row in rejected)
    faults, left = [], truth["images"] + len(truth["lost"])
    for line in funnel:
        told = {(line["stage"], reason): count for reason, count in line["dropped"].items()}
        if line["in"] != left or line["in"] != line["kept"] + sum(told.values()):
            faults.append(f"{line['stage']}: {line['in']} in after {left}, {line['kept']} kept, {told}")
        if told != {what: count for what, count in listed.items() if what[0] == line["stage"]}:
            faults.append(f"{line['stage']}: rejected.parquet does not list what the funnel counts")
        left = line["kept"]
    keys = Counter(exported(run)) + Counter(row["key"] for row in rejected)
    everything = [*truth["originals"], *truth["copies"], *truth["icons"], *truth["bad"], *truth["lost"]]
    if keys != Counter(everything) or left != len(exported(run)):
        faults.append(f"exported and rejected are not everything once: {(keys - Counter(everything)).most_common(3)}")
    wanted = {key: bad["reason"] for key, bad in truth["bad"].items()} | dict.fromkeys(
        truth["lost"], "failed_to_download"
    )
    reasons = {row["key"]: row["reason"] for row in rejected}
    return faults + [f"{key} is not {reason}" for key, reason in wanted.items() if reasons.get(key) != reason]


def exported(run: Path) -> list[str]:
    """The keys in the shards, from their metadata."""
    keys = []
    for path in sorted((run / "export").rglob("*.tar")):
        with tarfile.open(path) as tar:
            files = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
            keys += [json.loads(file.read())["key"] for file in files if file is not None]
    return keys


def duplicate_scores(run: Path, truth: Truth) -> dict[str, float]:
    """Recall by kind of copy; precision of what each method dropped; how many of the icons stayed.

    A copy is found when it or its original was dropped for the other. A removal is right when it names one of its kin.
    """
    kin = {key: key for key in truth["originals"]} | dict.fromkeys(truth["icons"], "icon")
    kin |= {key: copy["of"] for key, copy in truth["copies"].items()}
    judged = {row["key"]: row for row in rows(run, "deduplicate", ["key", "keep", "reason", "duplicate_of"])}
    gone = [row for row in judged.values() if not row["keep"]]
    pairs = {frozenset((row["key"], row["duplicate_of"])) for row in gone}
    scores: dict[str, float] = {}
    for kind in dict.fromkeys(copy["kind"] for copy in truth["copies"].values()):
        copies = [frozenset((key, copy["of"])) for key, copy in truth["copies"].items() if copy["kind"] == kind]
        scores[f"recall {kind}"] = float(np.mean([copy in pairs for copy in copies]))
    for reason in ("duplicate_exact", "duplicate_hash"):
        right = [kin[row["key"]] == kin[row["duplicate_of"]] for row in gone if row["reason"] == reason]
        scores[f"precision {reason}"] = float(np.mean(right)) if right else 0.0
    return scores | {"icons kept": sum(judged[key]["keep"] for key in truth["icons"])}


def features(run: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Every embedded image's key, its nearest centroid and its cosine to it, in float64."""
    centroids, mean = (np.load(run / "cluster" / f"{name}.npy").astype(np.float64) for name in ("centroids", "mean"))
    keys, clusters, cosines = [], [], []
    for path in sorted((run / "embed").glob("*.zarr")):
        keys += pq.read_table(path.with_suffix(".parquet"), columns=["key"])["key"].to_pylist()
        points = np.asarray(zarr.open_array(path, mode="r")[...], dtype=np.float64) - mean
        similar = points / np.linalg.norm(points, axis=1, keepdims=True) @ centroids.T
        clusters.append(similar.argmax(axis=1))
        cosines.append(similar.max(axis=1))
    return keys, np.concatenate(clusters), np.concatenate(cosines)


def selection_faults(run: Path, truth: Truth, nearest: int) -> tuple[list[str], dict[str, float]]:
    """Clusters whose kept images are not the nearest ones, and what there was to judge.

    `icons before` is how many icons the fullest cluster would have kept, had nobody removed duplicates.
    """
    keys, clusters, cosines = features(run)
    place = {key: number for number, key in enumerate(keys)}
    judged = rows(run, "select", ["key", "keep", "cluster"])
    kept = {row["key"] for row in judged if row["keep"]}
    faults, members = [], np.array([place[row["key"]] for row in judged])
    for row in judged:
        if row["cluster"] != clusters[place[row["key"]]]:
            faults.append(f"{row['key']} is said to be in cluster {row['cluster']}, not {clusters[place[row['key']]]}")
    for cluster in np.unique(clusters[members]):
        inside = members[clusters[members] == cluster]
        ordered = inside[np.argsort(-cosines[inside], kind="stable")]
        stayed = np.array([keys[number] in kept for number in ordered])
        worst = cosines[ordered[min(nearest, len(ordered)) - 1]]
        clear = np.abs(cosines[ordered] - worst) > TIE
        wanted = np.arange(len(ordered)) < nearest
        if stayed.sum() != wanted.sum() or (stayed != wanted)[clear].any():
            faults.append(f"cluster {cluster} keeps {stayed.sum()} of {len(ordered)}, which are not the nearest")
    sizes = np.bincount(clusters[members])
    return faults, {
        "clusters": int((sizes > 0).sum()),
        "clusters larger than nearest": int((sizes > nearest).sum()),
        "icons before": _icons_before(truth, keys, clusters, cosines, nearest),
        "icons after": sum(key in kept for key in truth["icons"]),
    }


def _icons_before(truth: Truth, keys: list[str], clusters: np.ndarray, cosines: np.ndarray, nearest: int) -> int:
    icons = np.isin(np.array(keys), truth["icons"])
    inside = np.flatnonzero(clusters == np.bincount(clusters[icons]).argmax())
    return int(icons[inside[np.argsort(-cosines[inside], kind="stable")][:nearest]].sum())
