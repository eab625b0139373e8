"""A stage in some layout on some GPUs: what it will need and give, by formulas. Loads no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cached_property
from typing import Any

from megavlm.platform.config import Recipe

from ..backend.guards import check_parts
from ..config import ModelConfig, Parallel, Stage
from ..costs import MicroBatch, Setting
from ..data.build import StageData
from ..data.manifest import Manifest
from ..training.flops import step_flops
from .contracts import Estimate, Gpu, Job, Load, Pieces, Recompute
from .load import load_of
from .memory import ranks, setting_of
from .pieces import pieces_of
from .timing import step_time


@dataclasses.dataclass(frozen=True)
class Layout:
    """What may differ from one plan of a stage to another without changing what it learns."""

    parallel: Parallel
    recompute: Recompute

    def stage(self, stage: Stage) -> Stage:
        """The stage in this layout."""
        return stage.model_copy(update={"parallel": self.parallel, "recompute": self.recompute})

    def keys(self) -> dict[str, Any]:
        """A stage's keys and their values."""
        return {f"parallel.{key}": value for key, value in self.parallel} | {"recompute": self.recompute}

    def overrides(self, of: Layout, stage: str) -> list[str]:
        """What turns the layout `of` a stage into this one, as words of a command."""
        were = of.keys()
        told = {key: json.dumps(value).strip('"') for key, value in self.keys().items() if were[key] != value}
        return [f"stages.{stage}.{key}={value}" for key, value in told.items()]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a stage does, whatever its layout, so that many can be tried. parameters: in all; trained: of them."""

    spec: StageData
    load: Load
    model_flops: float  # of a step over all GPUs
    parameters: int
    trained: int

    @classmethod
    def of(cls, spec: StageData, load: Load) -> Task:
        """A stage with what a step of it holds; raises ConfigError where it trains what there is not."""
        model, train = spec.model, spec.stage.train
        check_parts(model, spec.stage, f"stages.{spec.name}")
        flops = step_flops(model, train, load.amounts)
        return cls(spec, load, flops, model.parameter_counts()["total"], model.trained_parameters(train))

    @property
    def model(self) -> ModelConfig:
        """The stage's own."""
        return self.spec.model

    @property
    def layout(self) -> Layout:
        """The recipe's own."""
        return Layout(self.spec.stage.parallel, self.spec.stage.recompute)

    def estimate(self, gpu: Gpu, world: int, layout: Layout) -> Estimate:
        """On `world` GPUs. Whether the layout is possible is not asked here: `refuse.py` does."""
        job = self.job(gpu, world, layout)
        return Estimate(
            job=job,
            ranks=ranks(job, self.model, heavy=self._pieces(layout, self.load.most)),
            time=step_time(job),
            model_flops=self.model_flops,
            steps=self.spec.stage.steps,
            parameters=self.parameters,
            trained=self.trained,
        )

    def job(self, gpu: Gpu, world: int, layout: Layout) -> Job:
        """What memory and time depend on."""
        parallel, stage = layout.parallel, self.spec.stage
        dp = world // parallel.split
        return Job(
            stage=self.spec.name,
            gpu=gpu,
            world=world,
            parallel=parallel,
            dp=dp,
            micro_batches=micro_batches(self.load.packs, dp, parallel),
            precision=stage.precision,
            recompute=layout.recompute,
            train=tuple(stage.train),
            load=self.load,
            pieces=self._pieces(layout, self.load.of),
            overlap=dp * parallel.cp > 1 if parallel.overlap is None else parallel.overlap,
        )

    def _pieces(self, layout: Layout, of: MicroBatch) -> Pieces:
        """One computation serves all layouts that split layers alike."""
        setting = setting_of(layout.parallel, self.spec.stage.precision)
        key = (setting, layout.recompute, of)
        if key not in self._known:
            load = dataclasses.replace(self.load, of=of)
            self._known[key] = pieces_of(self.model, load, setting, layout.recompute)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[Setting, Recompute, MicroBatch], Pieces]:
        return {}


def layout_of(row: Estimate) -> Layout:
    """The layout that was estimated."""
    return Layout(row.job.parallel, row.job.recompute)


def micro_batches(packs: int, dp: int, parallel: Parallel) -> int:
    """What the replica with most packs works through: an interleaved pipeline's are filled up with blank ones."""
    each, by = math.ceil(packs / dp), parallel.pp if parallel.vp > 1 else 1
    return math.ceil(each / by) * by


def task_of(
    recipe: Recipe,
    stage: str,
    sample_tokens: int | None = None,
    sample_tiles: int | None = None,
    manifest: Manifest | None = None,
) -> Task:
    """A stage of a recipe, with the load that is told, known or assumed; raises what `load_of` does."""
    spec = StageData.of(recipe, stage)
    return Task.of(spec, load_of(spec, sample_tokens, sample_tiles, manifest))


def estimate(
    recipe: Recipe,
    stage: str,
    gpu: Gpu,
    world: int,
    sample_tokens: int | None = None,
    sample_tiles: int | None = None,
    manifest: Manifest | None = None,
) -> Estimate:
    """A stage of a recipe as it stands there, on `world` GPUs. Another layout is an override of the recipe."""
    task = task_of(recipe, stage, sample_tokens, sample_tiles, manifest)
    return task.estimate(gpu, world, task.layout)
