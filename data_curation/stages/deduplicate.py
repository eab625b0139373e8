"""Deduplicate: of equal files, equal-looking images (PDQ) and near features in a cluster (SemDeDup), one stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator

from ..arrays import write_array
from ..deduplication.find import Finder
from ..deduplication.images import Images, write_images
from ..deduplication.merge import merge
from ..grouping import ROWS_AT_ONCE, grouping
from .base import Outcome, Stage, Worker
from .demand import Demand, Size, Work

if TYPE_CHECKING:
    from ..run import CurationRun

BYTES_COMPARED = 250  # of memory, for an image whose hash is compared with all others: its facts, its key


class Deduplicate(Stage):
    """The sidecars say who stays; RUN/deduplicate/pairs.parquet lists each dropped image with those it was dropped for.

    Equal files are looked for among all images, near features inside clusters. Equal looks are looked for among all
    images, exhaustively: exact, and quadratic in their number; `hash_scope: cluster` looks inside clusters, and so
    scales as SemDeDup does. Clusters are handled in buckets, one task each, which read ranges of what assign wrote.
    """

    needs: ClassVar[tuple[str, ...]] = ("filter", "embed", "assign")
    per_shard: ClassVar[bool] = False
    version: ClassVar[int] = 2
    from_sidecars: ClassVar[bool] = True

    hash_radius: NonNegativeInt | None = 31  # differing bits of 256, inclusive; off: no perceptual hash
    min_hash_quality: int = 50  # PDQ's own advice: below it a hash says nothing
    hash_scope: Literal["all", "cluster"] = "all"
    epsilon: float | None = Field(default=None, ge=0, le=2)  # features: a pair at cosine above 1 - epsilon; off: none
    # Instead of epsilon: the share of images that features should leave. Both trial_epsilons are tried on a tenth of
    # the clusters, and the epsilon taken from the line through what they leave (SemDeDup).
    wanted_fraction: float | None = Field(default=None, gt=0, le=1)
    trial_epsilons: tuple[float, float] = (0.01, 0.1)
    # code: whoever resembles one that ranks before it goes, even if that one goes too (the published code);
    # paper: of each group linked by such pairs one stays.
    rule: Literal["code", "paper"] = "code"
    # A pair found by features alone counts only when its hashes differ in at most this many bits: for features that see
    # too much alike, such as random weights. off: features decide alone, which is SemDeDup.
    confirm_radius: NonNegativeInt | None = None
    # Who stays: the largest image (then the largest file), or SemDeDup's member farthest from (hard) or nearest to
    # (easy) its centroid, or one that the seed draws. Ties go to the earlier shard and position.
    keep: Literal["largest", "hard", "easy", "random"] = "largest"

    @model_validator(mode="after")
    def _one_epsilon(self) -> Deduplicate:
        if self.epsilon is not None and self.wanted_fraction is not None:
            raise ValueError("give `epsilon` or `wanted_fraction`, not both")
        if not 0 <= self.trial_epsilons[0] < self.trial_epsilons[1] <= 2:
            raise ValueError(f"trial_epsilons are two rising numbers of 0 to 2, not {list(self.trial_epsilons)}")
        return self

    def tasks(self, run: CurationRun) -> int:
        """0 ends it, 1 begins it, 2 compares all hashes; then come the buckets' trials and the buckets."""
        return 3 + 2 * grouping(run).buckets

    def rounds(self, run: CurationRun) -> Iterator[Sequence[int]]:
        """[images by cluster], [trials], [buckets], [sidecars]."""
        buckets = grouping(run).buckets
        yield [1]
        if self.wanted_fraction is not None:
            yield range(3, 3 + buckets)
        all_hashes = [2] if self.hash_radius is not None and self.hash_scope == "all" else []
        yield [*all_hashes, *range(3 + buckets, 3 + 2 * buckets)]
        yield [0]

    def demand(self, size: Size) -> Demand:
        """Beginning and end are one task; pairs inside clusters are the buckets', all pairs of hashes one task's."""
        buckets = max(1, min(size.clusters, -(-size.images // ROWS_AT_ONCE)))
        inside = Work(size.images * size.images / size.clusters / 2, buckets)
        work = {"images": Work(size.images)}
        if self.hash_radius is not None:
            work["hash_pairs"] = inside if self.hash_scope == "cluster" else Work(size.images * size.images / 2)
        if self.epsilon is not None or self.wanted_fraction is not None:
            work["feature_pairs"] = inside
        every = self.hash_radius is not None and self.hash_scope == "all"
        stated = BYTES_COMPARED * size.images if every else 0.0
        return Demand(work, size.images / buckets, stated, rounds=3 if self.wanted_fraction is None else 4)

    def worker(self, run: CurationRun) -> Worker:
        """Whatever the task's number says."""
        images = Images(run, self.name, grouping(run))
        finder = Finder(images, self)

        def work(task: int) -> Outcome:
            if task == 0:
                epsilon = {} if self.wanted_fraction is None else {"epsilon": finder.epsilon()}
                return merge(images, finder.found(), notes=epsilon)
            kind, bucket = divmod(task - 3, images.whole.buckets)
            if task == 1:
                write_images(images, self.keep)
            elif task == 2:
                finder.compare_all_hashes()
            elif kind == 0:
                write_array(images.trial(bucket), finder.trial(bucket))
            else:
                finder.compare(bucket)
            return Outcome(0, 0)  # the images are counted once, by task 0

        return work

    def finish(self, run: CurationRun) -> None:
        """Remove what an earlier division or other options left."""
        images = Images(run, self.name, grouping(run))
        trials = [] if self.wanted_fraction is None else map(images.trial, range(images.whole.buckets))
        valid = {*images.rows("cluster"), *images.rows("digest"), *Finder(images, self).found(), *trials}
        for path in images.folder.glob("*.*"):
            if path not in valid:
                path.unlink()
