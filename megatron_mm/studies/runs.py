"""The trainings of a study: one for each variant and seed, resolved and checked before any of them begins. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.config.tree import leaves
from megavlm.platform.errors import ConfigError, MegaVLMError, did_you_mean
from megavlm.platform.runs import RunFolder

from ..config import Stages
from ..data.build import StageData
from ..training.plan import Plan, make_plan
from ..training.stages import chosen, is_finished
from ..training.verb import MAY_CHANGE
from .schema import Study, Variant
from .score import Score


@dataclasses.dataclass(frozen=True)
class VariantRun:
    """One variant with one seed: an ordinary `train`, which anybody may start or go on with by hand."""

    variant: str
    seed: int
    base: str
    overrides: list[str]
    recipe: Recipe
    folder: RunFolder

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def stages(self) -> list[str]:
        """The stages that it trains, in order."""
        return chosen(self.recipe.section("stages"))

    @property
    def trained(self) -> list[str]:
        """Those of them that are no gates."""
        return [name for name in self.stages if name in self.recipe.section("stages").root]

    @property
    def finished(self) -> bool:
        """Whether all of them are trained, evaluated and judged."""
        return all(is_finished(self.folder, name) for name in self.stages)

    def command(self) -> list[str]:
        """The arguments of `megavlm` that bring it to its end, or as far as it comes."""
        return ["train", self.base, *self.overrides, "--out", str(self.folder.root), "--json"]

    def axes(self) -> dict[str, int]:
        """Parameters of the model that it ends with: by axis, `total`, and `vision`, which published tables give.

        That is encoder and connector together.
        """
        counts = StageData.of(self.recipe, self.trained[-1]).model.parameter_counts()
        return counts | {"vision": counts["encoder"] + counts["connector"]}

    def plan(self) -> Plan:
        """What `train --dry-run` says; raises what it raises, with the variant's name."""
        try:
            return make_plan(self.recipe)
        except MegaVLMError as error:
            raise _inside(error, self.variant) from None


def all_runs(study: Study, root: Path, only: Sequence[str] = ()) -> list[VariantRun]:
    """Every training of the study, seed by seed, below `root`; of the variants `only`, where some are named.

    Raises ConfigError for an override that no recipe takes, a score that no stage gives, two variants that are one.
    """
    names = [variant.name for variant in study.rows()]
    if unknown := next((name for name in only if name not in names), None):
        raise ConfigError(f"unknown variant '{unknown}'", where="--variant", fix=did_you_mean(unknown, names))
    rows = [variant for variant in study.rows() if not only or variant.name in only]
    found = [_resolve(study, variant, seed, root) for seed in study.seeds for variant in rows]
    _check_different(found[: len(rows)])
    return found


def _resolve(study: Study, variant: Variant, seed: int, root: Path) -> VariantRun:
    overrides, base = [*study.overrides, *variant.overrides, f"seed={seed}"], variant.recipe or study.recipe
    try:
        overrides += _selecting(variant.stages or study.stages, load_recipe(base, overrides))
        recipe = load_recipe(base, overrides)
        stages: Stages = recipe.section("stages")
        for name, score in study.scores.items():
            _check_score(name, score, stages)
    except MegaVLMError as error:
        raise _inside(error, variant.name) from None
    folder = RunFolder(root / "runs" / variant.name / f"seed-{seed}")
    return VariantRun(variant.name, seed, base, overrides, recipe, folder)


def _selecting(wanted: Sequence[str], recipe: Recipe) -> list[str]:
    """Overrides that leave the wanted stages, and of those none optional; no names: the recipe as it is."""
    stages: Stages = recipe.section("stages")
    for name in wanted:
        stages.any(name)  # raises ConfigError for an unknown one
    if not wanted:
        return []
    dropped = [f"stages.{name}=null" for name in stages.order if name not in wanted]
    return [*dropped, *(f"stages.{name}.optional=false" for name in wanted if stages.any(name).optional)]


def _check_score(name: str, score: Score, stages: Stages) -> None:
    for stage in score.stages:
        _check_source(f"scores.{name}", score, stage, stages)


def _check_source(where: str, score: Score, name: str, stages: Stages) -> None:
    """Raise ConfigError unless the stage `name` gives what the score reads of it."""
    stage = stages[name]
    if name not in chosen(stages):
        raise ConfigError(
            f"stage '{name}' is optional, and not among those the study runs",
            where=f"{where}.stage",
            fix=f"name it in the study's `stages`, or read one of {', '.join(chosen(stages))}",
        )
    if score.suite is None:
        return
    if score.suite not in stage.evaluate:
        known = ", ".join(stage.evaluate) or "none"
        raise ConfigError(
            f"stage '{name}' is not evaluated on suite '{score.suite}'",
            where=f"{where}.suite",
            fix=f"its suites: {known}; another is set with stages.{name}.evaluate={{{score.suite}: SET}}",
        )
    if score.blind and score.suite not in stage.blind:
        fix = f"set stages.{name}.blind=[{score.suite}]"
        raise ConfigError(f"stage '{name}' answers no '{score.suite}' blind", where=f"{where}.blind", fix=fix)


def _check_different(runs: Sequence[VariantRun]) -> None:
    """Two rows that cannot differ are a slip of whoever wrote them."""
    for k, run in enumerate(runs):
        same = next((other for other in runs[:k] if other.recipe.tree == run.recipe.tree), None)
        if same:
            raise ConfigError(
                f"variants '{same.variant}' and '{run.variant}' resolve to the same recipe",
                where=f"variants.{run.variant}",
                fix="leave one out, or change its overrides",
            )


def check_unchanged(runs: Sequence[VariantRun]) -> None:
    """Raise ConfigError where a folder holds a training of another configuration: its scores are not this study's."""
    for run in (run for run in runs if run.folder.path("config.yaml").exists()):
        old, new = dict(leaves(run.folder.config())), dict(leaves(run.recipe.tree))
        keys = (key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key))
        changed = next((key for key in keys if not any(fnmatchcase(key, may) for may in MAY_CHANGE)), None)
        if changed:
            raise ConfigError(
                f"the training of {run.label} was made with another '{changed}'",
                where=str(run.folder.root),
                fix="give another --out, or delete that folder to train it anew",
            )


def _inside(error: MegaVLMError, variant: str) -> MegaVLMError:
    """The same error, saying which variant it is of."""
    return type(error)(error.what, where=f"variant '{variant}': {error.where or ''}".rstrip(": "), fix=error.fix)
