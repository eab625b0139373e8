"""What each method finds: for an image the first one, in the order of who stays, that it duplicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megavlm.platform.errors import ConfigError

from ..arrays import read_array
from ..duplicates import equal_earlier, hash_distances, near_earlier
from ..features import unit
from ..grouping import Grouping
from ..semdedup import RULES, Confirm, Rule, interpolated
from ..shuffle import read_part, sorted_parts, write_parts
from .images import Columns, Images, in_order

if TYPE_CHECKING:
    from ..run import CurationRun
    from ..stages.deduplicate import Deduplicate

METHODS = ("exact", "hash", "features")  # the strongest evidence first
HASHES = "hashes"
TRIED = 10  # one in so many clusters is tried


@dataclasses.dataclass(frozen=True)
class Finder:
    """Compares the images of a run."""

    images: Images
    options: Deduplicate

    def found(self) -> list[Path]:
        """What the tasks write, one part for each group of shards."""
        hashes = self.options.hash_radius is not None and self.options.hash_scope == "all"
        names = [f"{bucket:06d}" for bucket in range(self.images.whole.buckets)]
        return [self.images.found_path(name) for name in ([HASHES] if hashes else []) + names]

    def compare(self, bucket: int) -> None:
        """Equal files among a bucket of hashes, looks and features inside each cluster of a bucket of clusters."""
        equal = self.images.part("digest", bucket)
        order = in_order(equal)
        found = [_found(equal, order, equal_earlier(equal["digest"][order]), "exact")]
        rows, features = self._bucket(bucket)
        for members in clusters_of(rows):
            found += self._inside(rows, members, None if features is None else unit_rows(features, members))
        self._write(f"{bucket:06d}", found)

    def compare_all_hashes(self) -> None:
        """Looks among all images."""
        parts = [self.images.part("cluster", bucket) for bucket in range(self.images.whole.buckets)]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._write(HASHES, [self._by_hash(rows, in_order(rows))])

    def trial(self, bucket: int) -> np.ndarray:
        """int64 [3]: the images in the tenth of a bucket's clusters that is tried, and how many each epsilon keeps."""
        rows, features = self._bucket(bucket)
        assert features is not None  # there is no trial without features
        counts = np.zeros(3, np.int64)
        tried = tried_clusters(self.images.whole, self.images.run.seed)
        for members in clusters_of(rows):
            if tried[rows["cluster"][members[0]]]:
                points = unit_rows(features, members)
                kept = [self._keeps(rows, members, points, epsilon) for epsilon in self.options.trial_epsilons]
                counts += [len(members), *kept]
        return counts

    def epsilon(self) -> float | None:
        """The one given, or that which the trials lead to; None when features are not compared."""
        if self.options.wanted_fraction is None:
            return self.options.epsilon
        counts = np.sum([read_array(self.images.trial(bucket)) for bucket in range(self.images.whole.buckets)], axis=0)
        if counts[1] == counts[2]:
            raise ConfigError(
                f"epsilons {list(self.options.trial_epsilons)} both keep {counts[1]} of {counts[0]} images",
                where="curation.stages.deduplicate.trial_epsilons",
                fix="give two that are further apart, or `epsilon` itself",
            )
        kept = (counts[1] / counts[0], counts[2] / counts[0])
        return interpolated(self.options.wanted_fraction, self.options.trial_epsilons, kept)

    def _bucket(self, bucket: int) -> tuple[Columns, Features | None]:
        """A bucket's images by cluster and by who stays, and their features where those are compared."""
        rows = self.images.part("cluster", bucket)
        order = in_order(rows, "cluster")
        rows = {name: values[order] for name, values in rows.items()}
        compared = self.options.epsilon is not None or self.options.wanted_fraction is not None
        return rows, read_bucket(self.images.run, self.images.whole, bucket, rows) if compared else None

    def _inside(self, rows: Columns, members: np.ndarray, points: np.ndarray | None) -> Iterator[Columns]:
        """What looks and features find in one cluster, whose `members` stand in the order of who stays."""
        if self.options.hash_radius is not None and self.options.hash_scope == "cluster":
            yield self._by_hash(rows, members)
        epsilon = self.epsilon()
        if points is not None and epsilon is not None:
            earlier = self._rule(points, epsilon, self._confirm(rows, members))
            found = _found(rows, members, earlier, "features")
            later = np.flatnonzero(earlier >= 0)
            cosines = np.einsum("nd,nd->n", points[later], points[earlier[later]])
            bits = hash_distances(rows["pdq"], members[later], members[earlier[later]])
            yield found | {"cosine": cosines.astype(np.float32), "bits": bits}

    def _by_hash(self, rows: Columns, order: np.ndarray) -> Columns:
        assert self.options.hash_radius is not None
        usable = rows["quality"][order] >= self.options.min_hash_quality
        earlier = near_earlier(rows["pdq"][order], usable, self.options.hash_radius)
        later = np.flatnonzero(earlier >= 0)
        bits = hash_distances(rows["pdq"], order[later], order[earlier[later]])
        return _found(rows, order, earlier, "hash") | {"bits": bits}

    def _keeps(self, rows: Columns, members: np.ndarray, points: np.ndarray, epsilon: float) -> int:
        return int((self._rule(points, epsilon, self._confirm(rows, members)) < 0).sum())

    def _confirm(self, rows: Columns, members: np.ndarray) -> Confirm | None:
        radius, hashes = self.options.confirm_radius, rows["pdq"]
        return None if radius is None else lambda a, b: hash_distances(hashes, members[a], members[b]) <= radius

    @property
    def _rule(self) -> Rule:
        return RULES[self.options.rule]

    def _write(self, name: str, found: list[Columns]) -> None:
        columns = {column: np.concatenate([one[column] for one in found]) for column in found[0]}
        group_of = self.images.whole.group_of
        key = columns["shard"].astype(np.int64) << 32 | columns["row"]
        order, ends = sorted_parts(key, group_of[columns["shard"]], len(self.images.whole.groups))
        write_parts(self.images.found_path(name), columns, order, ends)


@dataclasses.dataclass(frozen=True)
class Features:
    """`half` float16 [m, d] as stored; row i of a bucket's images is half[places[i]], minus `mean`."""

    half: np.ndarray
    places: np.ndarray
    mean: np.ndarray


def read_bucket(run: CurationRun, whole: Grouping, bucket: int, rows: Columns) -> Features:
    """The features of a bucket's images, from the ranges that assign wrote."""
    from ..stages.assign import store

    stored = read_part(store(run, whole), bucket)
    have, want = (columns["shard"].astype(np.int64) << 32 | columns["row"] for columns in (stored, rows))
    order = np.argsort(have)
    return Features(
        stored["features"],
        order[np.searchsorted(have, want, sorter=order)],
        read_array(run.folder.path("cluster", "mean.npy")),
    )


def unit_rows(features: Features, members: np.ndarray) -> np.ndarray:
    """Some of a bucket's features at unit length, float32 [n, d]."""
    return unit(features.half[features.places[members]].astype(np.float32), features.mean)


def clusters_of(rows: Columns) -> list[np.ndarray]:
    """Places of each cluster's images in `rows`, which are sorted by cluster; empty clusters are left out."""
    starts = np.flatnonzero(np.diff(rows["cluster"], prepend=-1))
    return np.split(np.arange(len(rows["cluster"])), starts[1:]) if len(starts) else []


def tried_clusters(whole: Grouping, seed: int) -> np.ndarray:
    """bool [clusters]: the tenth that a trial looks at, drawn by the seed."""
    tried = np.zeros(whole.clusters, bool)
    tried[np.random.default_rng(seed).permutation(whole.clusters)[: -(-whole.clusters // TRIED)]] = True
    return tried


def _found(rows: Columns, order: np.ndarray, earlier: np.ndarray, method: str) -> Columns:
    """Records of images that have an earlier one: `earlier` int64 [n] points into `order`, and that into `rows`."""
    later = np.flatnonzero(earlier >= 0)
    image, other = order[later], order[earlier[later]]
    columns = {name: rows[name][image] for name in ("shard", "row")}
    columns |= {f"other_{name}": rows[name][other] for name in ("shard", "row", "key", "rank_a", "rank_b")}
    return columns | {
        "method": np.full(len(later), METHODS.index(method), np.int8),
        "bits": np.full(len(later), -1, np.int16),
        "cosine": np.full(len(later), np.nan, np.float32),
    }
