"""A pilot from beginning to end: draw, scale, run at two sizes, measure, forecast."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.config.recipe import Recipe
from megavlm.platform.runs import RunFolder

from ..config import CurationConfig
from ..run import CurationRun
from ..source import Shard
from .caveats import caveats
from .draw import Census, by_bytes, census, drawn, evenly, recounted
from .drive import drive
from .forecast import Forecaster
from .measure import measure
from .rates import load_rates
from .scale import Scaled, lacking, scale, workers
from .show import answer
from .trials import tried

QUARTER = 4  # the smaller of the two runs has one in so many shards


class Pilot:
    """Two runs, one on a part of the other's shards, and what follows from them."""

    def __init__(self, recipe: Recipe, root: Path, command: Sequence[str]) -> None:
        self.recipe, self.root, self.command = recipe, root, command
        self.config: CurationConfig = recipe.section("curation")

    def plan(self, samples: int) -> dict[str, Any]:
        """What would be drawn and scaled."""
        with tempfile.TemporaryDirectory() as folder:
            found = self._census(Path(folder))
        shards = drawn(found, samples)
        scaled = self._scaled(found, shards, lacking(self.config))
        part = by_bytes(shards, found.shards, found.samples)
        return self._told(found, scaled, part, shards, 0.0) | {"stages": [], "forecast": None, "warnings": []}

    def run(self, samples: int) -> dict[str, Any]:
        """Try, measure and forecast."""
        found = self._census(self.root)
        lacks = lacking(self.config)
        shards = drawn(found, samples)
        sizes = [[shards[place] for place in evenly(len(shards), max(1, len(shards) // QUARTER))]]
        sizes = [*sizes, shards] if len(shards) > 1 else sizes
        plans = [self._scaled(found, chosen, lacks) for chosen in sizes]
        folders = [self.root.with_name(f"{self.root.name}-quarter"), self.root][-len(plans) :]
        runs = [self._curated(*pair) for pair in zip(plans, folders, strict=True)]
        measured = [measure(run) for run in runs]
        source = recounted(found, shards, measured[-1].samples)
        forecaster = Forecaster(
            self.config, source, measured, lacks, load_rates(), lambda stage, size: tried(runs[-1], stage, size)
        )
        told = self._told(source, plans[-1], measured[-1].samples, shards, sum(one.seconds for one in measured))
        return answer(forecaster.all(), told, caveats(measured, lacks, workers(self.config)))

    def _census(self, folder: Path) -> Census:
        """`folder` gets the lists of members that some sources write, where its run would have them."""
        return census(self.config.find(folder / "ledger" / "members"), folder)

    def _scaled(self, found: Census, shards: Sequence[Shard], lacks: dict[str, str]) -> Scaled:
        share = sum(shard.size for shard in shards) / max(1, sum(shard.size for shard in found.shards))
        return scale(self.recipe.tree, self.config, [shard.name for shard in shards], share, lacks)

    def _curated(self, plan: Scaled, folder: Path) -> CurationRun:
        origins = self.recipe.origins | dict.fromkeys([*plan.changes, "curation.only"], "the pilot")
        made = RunFolder.create(folder, plan.tree, origins, self.command)
        drive(made)
        return CurationRun.open(made.root)

    def _told(
        self, found: Census, plan: Scaled, samples: int, shards: Sequence[Shard], seconds: float
    ) -> dict[str, Any]:
        pilot = {"samples": samples, "shards": len(shards), "seconds": round(seconds, 2), "run": str(self.root)}
        source = {"samples": found.samples, "shards": len(found.shards), "label": found.label}
        return {"pilot": pilot | {"scaled": plan.changes}, "source": source}
