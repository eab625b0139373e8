"""Runs that begin at `cluster`, over features with pairs of known cosines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from megavlm.data_curation.features import write_features
from megavlm.data_curation.fingerprint import task_fingerprints
from megavlm.data_curation.ledger import Line
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.stages.base import Outcome
from megavlm.data_curation.stages.filter import SCHEMA as FILTER_SCHEMA
from megavlm.data_curation.stages.ingest import SCHEMA as INGEST_SCHEMA
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder

DONE = ("ingest", "filter", "embed")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """`count` vectors of which every tenth starts a pair: half of those just within epsilon, half just beyond.

    Vectors stand round `centres` directions, at a cosine of 0.7 to them and of 0.5 to each other. A pair's cosine
    differs from 1 - epsilon by `least` to `most`; features are stored in float16, which moves it by some 1e-5.
    """

    count: int
    width: int
    seed: int
    epsilon: float = 0.05
    least: float = 0.0005
    most: float = 0.02
    centres: int = 200

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Float32 [count, width] of many lengths; int64 [pairs, 3]: two rows, and 1 where they are within epsilon."""
        rng = np.random.default_rng(self.seed)
        pairs = self.count // 10
        directions = _unit(rng.standard_normal((self.centres, self.width)))
        around = _unit(rng.standard_normal((self.count, self.width)))
        points = _unit(directions[rng.integers(0, self.centres, self.count)] + around)
        near = np.arange(pairs) % 2 == 0
        off = rng.uniform(self.least, self.most, pairs)
        cosine = 1 - self.epsilon + np.where(near, off, -off)
        bases, aside = points[:pairs], rng.standard_normal((pairs, self.width))
        aside = _unit(aside - np.einsum("nd,nd->n", aside, bases)[:, None] * bases)
        points[pairs : 2 * pairs] = cosine[:, None] * bases + np.sqrt(1 - cosine**2)[:, None] * aside
        points *= rng.uniform(0.5, 20, (self.count, 1))
        order = rng.permutation(self.count)
        place = np.argsort(order)
        table = np.stack([place[:pairs], place[pairs : 2 * pairs], near], axis=1)
        return points[order].astype(np.float32), table


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def keys_of(shard: int, rows: int) -> list[str]:
    """The keys that plant() gives."""
    return [f"{shard:05d}{row:05d}" for row in range(rows)]


def recipe(folder: Path, clusters: int, deduplicate: dict[str, Any], executor: dict[str, Any]) -> dict[str, Any]:
    """Features alone find duplicates."""
    stages = {
        "ingest": {},
        "filter": {},
        "embed": {"embedder": {"name": "pixels"}},
        "cluster": {"clusters": clusters, "iterations": 10},
        "assign": {},
        "deduplicate": {"hash_radius": None, "epsilon": 0.05, "keep": "hard"} | deduplicate,
    }
    curation = {"source": {"path": str(folder / "raw")}, "stages": stages, "executor": executor}
    return {"name": "planted", "seed": 1, "curation": curation}


def plant(folder: Path, tree: dict[str, Any], features: np.ndarray, per_shard: int) -> Path:
    """A run in folder/run that is done up to `embed`; returns the recipe with which to go on."""
    (folder / "raw").mkdir(parents=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    for shard in range(-(-len(features) // per_shard)):
        (folder / "raw" / f"{shard:05d}.tar").touch()
    loaded = load_recipe(str(file), [])
    run = CurationRun.open(RunFolder.create(folder / "run", loaded.tree, loaded.origins, ["planted"]).root)
    run.make_plan()
    for task, name in enumerate(run.plan.names):
        part = features[task * per_shard : (task + 1) * per_shard]
        write_features(run.folder.path("embed", f"{name}.zarr"), part)
        for stage, table in _sidecars(keys_of(task, len(part)), np.random.default_rng([2, task])):
            run.write_sidecar(stage, name, table)
        for stage in DONE:
            print_of = task_fingerprints(run, stage, [task])[task]
            run.ledger.mark(stage, Line(task), print_of, Outcome(len(part), len(part)), 0.0)
    return file


def _sidecars(keys: list[str], rng: np.random.Generator) -> Iterator[tuple[str, pa.Table]]:
    """What ingest, filter and embed write: no two files are equal."""
    count = len(keys)
    judged: dict[str, Any] = {"key": keys, "keep": [True] * count, "reason": [None] * count, "detail": [None] * count}
    yield "ingest", pa.table(judged | {"caption": ["planted"] * count, "metadata": ["{}"] * count}, INGEST_SCHEMA)
    digests = rng.integers(0, 256, (count, 64), dtype=np.uint8)
    measured: dict[str, Any] = dict.fromkeys(("width", "height", "bytes", "pdq_quality"), [100] * count)
    measured |= {"contrast": [50.0] * count, "format": ["jpeg"] * count}
    measured |= {
        "sha256": [row[:32].tobytes().hex() for row in digests],
        "pdq": [row[32:].tobytes() for row in digests],
    }
    yield "filter", pa.table(judged | measured, FILTER_SCHEMA)
    yield "embed", pa.table({"key": keys, "keep": [True] * count, "reason": pa.nulls(count, pa.string())})


def scores(rows: list[dict[str, Any]], keys: list[str], pairs: np.ndarray) -> dict[str, float]:
    """Recall of the pairs within epsilon, and precision of what was dropped, from deduplicate's sidecars."""
    dropped = {frozenset((row["key"], row["duplicate_of"])) for row in rows if not row["keep"]}
    near = {frozenset((keys[a], keys[b])) for a, b, within in pairs if within}
    gone = sum(not row["keep"] for row in rows)
    return {"pairs": len(near), "recall": len(near & dropped) / len(near), "precision": len(near & dropped) / gone}
