"""What is to be submitted: one piece of work per unfinished stage of a recipe, or one for any other verb."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from megavlm.platform.cli import third_party
from megavlm.platform.config import Recipe, load_recipe
from megavlm.platform.config.tree import leaves
from megavlm.platform.errors import ConfigError, NotBuiltYet, did_you_mean
from megavlm.platform.runs import RunFolder, default_runs_root
from megavlm.platform.verbs import VERBS

from .script import check_name
from .trial import dry_run

# What a resume may set anew, as `train` has it; a test compares them.
MAY_CHANGE = (
    "stages.*.parallel",
    "stages.*.parallel.*",
    "stages.*.checkpoint.*",
    "stages.*.on_spike",
    "stages.*.watch",
    "stages.*.watch.*",
    "stages.*.deterministic",
    "data.sets.*",
    "data.decoder.*",
    "run.*",
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """One job: a verb and its arguments, and the names of the pieces it waits for."""

    name: str
    command: list[str]
    after: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Work:
    """The pieces, in an order in which none comes before what it waits for. `plan` is train's own, {} for other verbs;
    `recipe` is what the run folder is made from."""

    run: Path
    pieces: list[Piece]
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Recipe | None = None

    def make_folder(self, command: Sequence[str]) -> RunFolder:
        """The run folder; a recipe's gets its config.yaml now, so that later edits of the recipe change nothing."""
        if self.recipe is None:
            self.run.mkdir(parents=True, exist_ok=True)
            return RunFolder(self.run)
        return RunFolder.create(self.run, self.recipe.tree, self.recipe.origins, command, may_change=MAY_CHANGE)


def of_recipe(
    name: str, overrides: Sequence[str], run: Path | None, nodes: int, processes: int, stage: str | None
) -> Work:
    """A job per stage still to do. Raises what `train --dry-run` does, or ConfigError for another run's folder."""
    recipe = load_recipe(name, overrides)
    run = absolute(run or default_runs_root() / recipe.name)
    plan = dry_run(name, overrides, run, nodes, processes, stage)
    check_same(RunFolder(run), recipe)
    names = [each["name"] for each in plan["stages"] if not is_finished(run, each["name"])]
    stages = recipe.tree["stages"]
    pieces = [Piece(each, _train(run, each, processes), _waits(stages[each])) for each in names]
    return Work(run, pieces, plan, recipe)  # a recipe's stages stand after those they wait for


def fewest_nodes(name: str, overrides: Sequence[str], processes: int, stage: str | None) -> int:
    """The smallest number of nodes on which every stage's layout comes out even, with so many processes on each."""
    stages = load_recipe(name, overrides).tree.get("stages", {})
    wanted = [each for key, each in stages.items() if stage in (None, key)]
    layouts = [_layout(each, stages) for each in wanted]
    ranks = math.lcm(*(math.prod(layout[axis] for axis in ("tp", "pp", "cp")) for layout in layouts))
    return ranks // math.gcd(ranks, processes)


def _layout(stage: dict[str, Any], stages: dict[str, Any]) -> dict[str, Any]:
    """A gate without one of its own has that of the stage that it judges."""
    return stage["parallel"] or stages[stage["judges"]]["parallel"] | {"cp": 1}


def _train(run: Path, stage: str, processes: int) -> list[str]:
    """How many nodes there are reaches train through its environment."""
    return ["train", str(run / "config.yaml"), f"--out={run}", f"--stage={stage}", f"--nproc={processes}"]


def _waits(stage: dict[str, Any]) -> tuple[str, ...]:
    """The stages whose weights it starts from; of a gate: the one that it judges, and the one it compares that with."""
    if "judges" not in stage:
        return tuple(stage.get("after", []))
    baseline = stage["gate"]["baseline"]
    other_run = set(baseline) & {":", "/"}
    return (stage["judges"],) if other_run else (stage["judges"], baseline)


def is_finished(run: Path, stage: str) -> bool:
    """Whether a stage of this run is done."""
    return (run / "stages" / stage / "finished").exists()


def check_same(run: RunFolder, recipe: Recipe) -> None:
    """Raises ConfigError when the folder holds a run with another configuration, before anything is written."""
    if not run.path("config.yaml").exists():
        return
    old, new = dict(leaves(run.config())), dict(leaves(recipe.tree))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    fixed = [key for key in changed if not any(fnmatchcase(key, pattern) for pattern in MAY_CHANGE)]
    if fixed:
        fix = "give another folder with --out, or the configuration this run was started with"
        raise ConfigError(f"{run.root} holds a run with another '{fixed[0]}'", where=fixed[0], fix=fix)


def of_verb(words: Sequence[str], run: Path | None, name: str | None) -> Work:
    """One job for a verb with its arguments as they are. Raises ConfigError for a verb that there is not."""
    verb = known_verb(words)
    name = check_name(name or verb.replace(" ", "-"))
    folder = run or _own_folder(words)
    return Work(absolute(folder) if folder else _free_folder(name), [Piece(name, list(words))])


def known_verb(words: Sequence[str]) -> str:
    """The verb that the words begin with."""
    verb = next((text for text in (" ".join(words[:2]), words[0]) if text in VERBS), None)
    if verb is None and words[0] in (added := third_party()):
        return words[0]
    if verb is None:
        raise ConfigError(f"unknown verb '{words[0]}'", where="after --", fix=did_you_mean(words[0], [*VERBS, *added]))
    if VERBS[verb].target is None:
        raise NotBuiltYet(f"`megavlm {verb}` is not built yet", where="after --")
    return verb


def _own_folder(words: Sequence[str]) -> Path | None:
    """The value of the verb's own --out."""
    for word, following in itertools.zip_longest(words, words[1:]):
        if word == "--out" and following:
            return Path(following)
        if word.startswith("--out="):
            return Path(word.removeprefix("--out="))
    return None


def _free_folder(name: str) -> Path:
    """RUNS/NAME, or the first of RUNS/NAME-2, RUNS/NAME-3, ... that is not there."""
    root = absolute(default_runs_root())
    numbered = itertools.chain([root / name], (root / f"{name}-{number}" for number in itertools.count(2)))
    return next(folder for folder in numbered if not folder.exists())


def absolute(path: Path) -> Path:
    """`path` from the root, without `..`, links kept: they may be what every node knows."""
    return Path(os.path.abspath(path))
