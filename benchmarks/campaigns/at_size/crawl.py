"""A crawl as img2dataset leaves it, of any size, with planted copies, icons and bad files; `truth.json` says which.

    truth = write_crawl(folder, Crawl(images=20_000, seed=1), processes=2)

Every row is made from the seed and its number alone, so processes share the shards, one image is in memory at a time,
and a shard that is there already is left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import multiprocessing
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megavlm.platform.demo.plants import Plant

from .pictures import KINDS, Pictures
from .plants import BAD, COPIES, bad_file, encode, icon, reasons

SHARE = 0.02  # of all images: copies of each kind, and icons
LOST_SHARE = 0.01  # of the tars' images: further rows that were never downloaded


@dataclasses.dataclass(frozen=True)
class Crawl:
    """What a crawl of `images` images (samples of the tars) holds."""

    images: int
    seed: int
    sides: tuple[int, int] = (100, 400)  # shortest and longest side of an original, px
    per_shard: int = 500
    bad_of_each: int = 1

    @functools.cached_property
    def pictures(self) -> Pictures:
        """The originals."""
        return Pictures(self.seed, self.sides)

    @functools.cached_property
    def roles(self) -> list[tuple[str, int]]:
        """(role, number) of every row: an original and which, a kind of copy and of which, an icon, a bad file."""
        rng, share = np.random.default_rng([self.seed, 1]), max(1, round(SHARE * self.images))
        kinds = ("exact", *COPIES)
        originals = self.images - (len(kinds) + 1) * share - len(BAD) * self.bad_of_each
        copied = rng.choice(originals, (len(kinds), share), replace=False)
        rows = [("original", number) for number in range(originals)]
        rows += [(kind, int(of)) for kind, chosen in zip(kinds, copied, strict=True) for of in chosen]
        rows += [("icon", number) for number in range(share)]
        rows += [(kind, number) for kind in BAD for number in range(self.bad_of_each)]
        return [rows[int(place)] for place in rng.permutation(len(rows))]

    @property
    def shards(self) -> int:
        """How many."""
        return -(-self.images // self.per_shard)

    def key(self, row: int) -> str:
        """img2dataset's: shard, then place."""
        return f"{row // self.per_shard:05d}{row % self.per_shard:04d}"

    def lost(self, shard: int) -> list[str]:
        """Keys of a shard's rows that were never downloaded."""
        count = max(1, round(LOST_SHARE * self.per_shard))
        return [f"{shard:05d}{self.per_shard + place:04d}" for place in range(count)]

    def truth(self) -> dict[str, Any]:
        """What truth.json holds: keys only, nothing is drawn."""
        keyed = {self.key(row): role for row, role in enumerate(self.roles)}
        originals = {number: key for key, (role, number) in keyed.items() if role == "original"}
        copies = ("exact", *COPIES)
        return {
            "images": self.images,
            "seed": self.seed,
            "originals": {key: KINDS[number % len(KINDS)] for number, key in originals.items()},
            "copies": {k: {"kind": role, "of": originals[n]} for k, (role, n) in keyed.items() if role in copies},
            "icons": [key for key, (role, _) in keyed.items() if role == "icon"],
            "bad": {k: {"kind": role, "reason": reasons()[role]} for k, (role, _) in keyed.items() if role in BAD},
            "lost": [key for shard in range(self.shards) for key in self.lost(shard)],
        }

    def plant(self, row: int) -> Plant:
        """One row's file."""
        role, number = self.roles[row]
        rng = np.random.default_rng([self.seed, 2, row])
        if role in BAD:
            return bad_file(role, rng)
        if role == "icon":
            return Plant(role, "png", icon(), caption="image not available")
        kind, image = self.pictures.original(number)
        first = np.random.default_rng([self.seed, 3, number])  # an exact copy has the original's bytes
        extension, data = COPIES[role](image, rng) if role in COPIES else encode(image, first)
        return Plant(role, extension, data, caption=f"a {kind}, number {number} of the crawl")


def write_crawl(folder: Path, crawl: Crawl, processes: int = 1) -> dict[str, Any]:
    """Fill `folder` with the shards that it lacks, then truth.json, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in range(crawl.shards) if not (folder / f"{shard:05d}_stats.json").exists()]
    if processes == 1:
        for shard in missing:
            write_shard(folder, crawl, shard)
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            done = [pool.submit(write_shard, folder, crawl, shard) for shard in missing]
            for count, future in enumerate(as_completed(done), start=1):
                future.result()
                print(f"\rcrawl: {count} of {len(missing)} shards", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    truth = crawl.truth()
    (folder / "truth.json").write_text(json.dumps(truth))
    return truth


def write_shard(folder: Path, crawl: Crawl, shard: int) -> None:
    """SHARD.tar, .parquet with the lost rows as well, and last _stats.json, as img2dataset does."""
    stem, listed = folder / f"{shard:05d}", list[dict[str, str | None]]()
    rows = range(shard * crawl.per_shard, min((shard + 1) * crawl.per_shard, crawl.images))
    with tarfile.open(f"{stem}.tar", "w") as tar:
        for row in rows:
            plant, key = crawl.plant(row), crawl.key(row)
            add_sample(tar, key, plant)
            listed.append(facts(key) | {"caption": plant.caption, "status": "success", "error_message": None})
    lost: dict[str, str | None] = {
        "caption": "lost",
        "status": "failed_to_download",
        "error_message": "HTTP Error 404: Not Found",
    }
    listed += [facts(key) | lost for key in crawl.lost(shard)]
    pq.write_table(pa.Table.from_pylist(listed), f"{stem}.parquet")
    stats = {"count": len(listed), "successes": len(rows), "failed_to_download": len(listed) - len(rows)}
    Path(f"{stem}_stats.json").write_text(json.dumps(stats))


def facts(key: str) -> dict[str, str | None]:
    """A sample's metadata."""
    return {"key": key, "url": f"https://example.org/{key}"}


def add_sample(tar: tarfile.TarFile, key: str, plant: Plant) -> None:
    """An image, its caption and its metadata, as far as it has them."""
    members = {plant.extension: plant.data}
    members |= {} if plant.caption is None else {"txt": plant.caption.encode()}
    members["json"] = json.dumps(facts(key)).encode() if plant.json is None else plant.json
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
