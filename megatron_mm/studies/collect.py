"""What one training of a study gives: its scores, and what it saw, counted in the files of its run folder. No torch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections import Counter
from functools import partial
from typing import Any

from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.errors import ConfigError, did_you_mean
from megavlm.platform.runs import RunFolder

from ..data.amounts import amounts
from ..data.build import StageData
from ..data.manifest import Manifest, Pack
from ..evaluation.predictions import Prediction, read_predictions
from ..evaluation.stage import BLIND, PLAIN, predictions_path
from ..training.flops import visual_tokens
from ..training.outcome import stage_steps
from .runs import VariantRun
from .schema import Study
from .score import Score

Answers = list[Prediction]


@dataclasses.dataclass(frozen=True)
class RunFigures:
    """A finished training. Counts are sums over its stages, over the batches of the manifests that it stepped through.

    tokens: what stood in the packed sequences, padding left out; tiles: shown to the encoder; visual_tokens: what the
    connector made of them; tokens_beside: those of them that stood in a context beside the sequence; draws: a hash of
    which samples were drawn, however ordered.
    """

    seed: int
    parameters: int
    steps: int
    samples: int
    tokens: int
    tiles: int
    visual_tokens: int
    tokens_beside: int
    seconds: float  # of the steps alone
    draws: str
    answers: dict[str, Answers]  # score -> the answers it counts
    before: dict[str, Answers]  # score -> those to the same items, of the stage that it takes off
    metrics: dict[str, float | None]  # score -> its value

    def record(self) -> dict[str, Any]:
        """Plain data, without the answers."""
        told = dataclasses.asdict(dataclasses.replace(self, answers={}, before={}))
        return {key: value for key, value in told.items() if key not in ("answers", "before")}


def figures(study: Study, run: VariantRun) -> RunFigures:
    """Read a finished run; raises InputError for a file that is missing."""
    folder, recipe = run.folder, load_recipe(str(run.folder.path("config.yaml")))
    names = run.trained  # a gate steps through nothing
    seen: Counter[str] = Counter()
    draws = 0
    for name in names:
        counted, drawn = seen_in(folder, recipe, name)
        seen.update(counted)
        draws ^= drawn
    steps = [line for name in names for line in stage_steps(folder, name)]
    return RunFigures(
        seed=run.seed,
        parameters=StageData.of(recipe, names[-1]).model.parameter_counts()["total"],
        steps=len(steps),
        seconds=round(sum(line["seconds"] for line in steps), 2),
        draws=f"{draws:016x}",
        **{key: seen[key] for key in ("samples", "tokens", "tiles", "visual_tokens", "tokens_beside")},
        answers={key: _answers(folder, score, score.stage) for key, score in study.scores.items() if score.suite},
        before={key: _answers(folder, score, score.minus) for key, score in study.scores.items() if score.minus},
        metrics={key: _metric(folder, score) for key, score in study.scores.items() if score.metric},
    )


def score_of(study: Study, run: VariantRun, name: str) -> float:
    """A finished run's score: a share of items, a difference of shares, or a metric; NaN where it has none."""
    score = study.scores[name]
    if score.metric:
        value = _metric(run.folder, score)
        return math.nan if value is None else value
    shares = [
        sum(item.correct for item in answers) / len(answers) if answers else math.nan
        for answers in (_answers(run.folder, score, stage) for stage in score.stages)
    ]
    return shares[0] - sum(shares[1:])


def seen_in(folder: RunFolder, recipe: Recipe, stage: str) -> tuple[dict[str, int], int]:
    """(sums, hash of the draws) over the global batches that a stage stepped through."""
    manifest, model = Manifest(folder.path("stages", stage, "packs")), StageData.of(recipe, stage).model
    beside = functools.cache(partial(model.injection.context_tiles, thumbnail=model.tiling.makes_thumbnails))
    seen: Counter[str] = Counter()
    draws = 0
    for line in stage_steps(folder, stage):
        packs = manifest.batch(line["batch"])
        of = amounts(packs, manifest.sequence_length, beside)
        seen.update(samples=of.samples, tokens=of.tokens, tiles=of.tiles)
        seen.update(visual_tokens=visual_tokens(model, of), tokens_beside=of.context_tiles * model.tokens_per_tile)
        draws = (draws + sum(_draw(stage, pack) for pack in packs)) % 2**64
    return dict(seen), draws


def _draw(stage: str, pack: Pack) -> int:
    """Sums do not depend on the order, and so tell only which samples there were."""
    names = (f"{stage}/{entry.set}/{entry.index}/{entry.epoch}".encode() for entry in pack.entries)
    return sum(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") for name in names)


def _answers(folder: RunFolder, score: Score, stage: str) -> Answers:
    assert score.suite
    found = read_predictions(predictions_path(folder, stage, score.suite, BLIND if score.blind else PLAIN))
    return [item for item in found if score.kind in {None, item.kind}]


def _metric(folder: RunFolder, score: Score) -> float | None:
    """The mean of the last steps that have a value; None where none has."""
    lines = stage_steps(folder, score.stage)[-score.over :]
    name = str(score.metric)
    if lines and name not in lines[-1]:
        fix = did_you_mean(name, lines[-1])
        raise ConfigError(f"metrics.jsonl has no '{name}'", where=f"stage {score.stage} of {folder.root}", fix=fix)
    known = [line[name] for line in lines if line.get(name) is not None]
    return sum(known) / len(known) if known else None
