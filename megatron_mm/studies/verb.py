"""`megavlm study list | show | run | report`. Loads no torch: the trainings are commands of their own."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.errors import CheckFailed, ConfigError, MegaVLMError
from megavlm.platform.nodes import COUNT, place
from megavlm.platform.runs import RunFolder, default_runs_root

from . import show
from .drive import drive
from .find import find_study, list_studies
from .outlook import outlook
from .plan import plan_lines, planned
from .report import write_table
from .runs import VariantRun, all_runs, check_unchanged
from .schema import Study, Variant
from .score import Score
from .searched import record
from .shared import Sharing
from .table import make_table
from .trials import go_on, plus, so_far

MAY_CHANGE = ["*"]  # of a study that goes on: every training guards its own configuration
FOLDER = "studies"  # below the runs

EPILOG = """\
examples:
  megavlm study run nvlm-tags --dry-run                     every training it would start, and what each will see
  megavlm study run nvlm-tags --variant 1d --variant none   two rows of the table; the same command again goes on
  megavlm study run nvlm-tags seeds=[1] --set stages.sft.steps=20 --out runs/short
"""


def list_main(argv: Sequence[str]) -> int:
    """The shipped studies with the question each asks."""
    args = parser("study list").parse_args(argv)
    questions = {name: find_study(name).study.question for name in list_studies()}
    print(json.dumps(questions, indent=2) if args.json else "\n".join(f"{k:<20}{v}" for k, v in questions.items()))
    return 0


def show_main(argv: Sequence[str]) -> int:
    """A study as it is written: question, variants, seeds, scores, and the published table."""
    words, overrides = split_overrides(argv)
    p = parser("study show", epilog="example: megavlm study show nvlm-tags")
    p.add_argument("study", help="a shipped study's name or a YAML file")
    args = p.parse_args(words)
    study = find_study(args.study, overrides).study
    print(json.dumps(study.model_dump(mode="json"), indent=2) if args.json else readable(study))
    return 0


def run_main(argv: Sequence[str]) -> int:
    """Train what is not trained, and write the table.

    Exit codes: 0 done, 1 a variant failed, 3 what had to be equal is not, 4 stopped and resumable.
    """
    if not place().alone:
        fix = "start it on one; `megavlm submit --nodes 1` does"
        raise ConfigError("a study is driven from one machine, and this is one of several", where=COUNT, fix=fix)
    words, overrides = split_overrides(_set_joined(argv))
    args = _arguments(words)
    found = find_study(args.study, overrides)
    if found.study.search and args.variant:
        fix = "leave it out, or set search.candidates=[...]"
        raise ConfigError("a search chooses its variants itself", where="--variant", fix=fix)
    study = found.study.model_copy(update={"overrides": [*found.study.overrides, *args.set]})
    folder = RunFolder(args.out or default_runs_root() / FOLDER / study.name)
    listed, rounds = so_far(study, folder)
    known = with_folder(listed, folder, args.variant)
    check_unchanged(known)
    runs, sharing = [run for run in known if not args.variant or run.variant in args.variant], Sharing(known)
    plans = planned(listed, runs, sharing) | ({"search": outlook(study, rounds, folder.root)} if rounds else {})
    study.executor.make()
    if args.dry_run:
        told = {"study": study.name, "folder": str(folder.root), **plans}
        print(json.dumps(told, indent=2) if args.json else plan_lines(told))
        return 0
    tree = study.model_dump(mode="json")
    RunFolder.create(folder.root, tree, found.origins, ["megavlm", "study", "run", *argv], MAY_CHANGE)
    drive(folder, study, runs, sharing) if study.search is None else go_on(study, folder)
    return _tell(study, folder, args.variant, args.json)


def report_main(argv: Sequence[str]) -> int:
    """Write the table and the report anew from the files of a study's folder."""
    p = parser("study report", epilog="example: megavlm study report nvlm-tags")
    p.add_argument("study", help="a study's folder, or the name of one under the runs")
    args = p.parse_args(argv)
    named = default_runs_root() / FOLDER / args.study
    folder = RunFolder.open(named if (named / "config.yaml").exists() else args.study)
    study: Study = Study.parse(folder.config(), where=str(folder.path("config.yaml")))
    return _tell(study, folder, [], args.json)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    p = parser("study run", epilog=EPILOG)
    p.add_argument("study", help="a shipped study's name or a YAML file; KEY=VALUE anywhere sets one of its keys")
    p.add_argument("--variant", action="append", default=[], help="this row only; may be given several times")
    p.add_argument("--set", action="append", default=[], metavar="A.B=C", help="an override of every variant's recipe")
    p.add_argument("--out", type=Path, help="folder of the study (default: runs/studies/NAME)")
    p.add_argument("--dry-run", action="store_true", help="check everything and print the trainings; loads no torch")
    return p.parse_args(words)


def _set_joined(argv: Sequence[str]) -> list[str]:
    """`--set A.B=C` as one word, so that its value is not taken for an override of the study."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--set":
            words[-1] = f"--set={word}"
        else:
            words.append(word)
    return words


def with_folder(study: Study, folder: RunFolder, asked: Sequence[str]) -> list[VariantRun]:
    """The trainings of the variants asked for (none: of all), and those that have a folder from before."""
    there = [variant.name for variant in study.rows() if folder.path("runs", variant.name).is_dir()]
    return all_runs(study, folder.root, [*asked, *there] if asked else [])


def _tell(study: Study, folder: RunFolder, asked: Sequence[str], as_json: bool) -> int:
    """Write and print the table: of the variants asked for, and those that have a folder."""
    listed, rounds = so_far(study, folder)
    runs = with_folder(listed, folder, asked)
    check_unchanged(runs)
    table = make_table(listed, folder, runs) | ({"search": record(study, rounds, runs)} if rounds else {})
    files = write_table(folder, table)
    print(json.dumps(table | {"files": files}, indent=2) if as_json else show.markdown(table))
    if not as_json:
        print(f"report: {files['report']}")
    if any(row["reasons"] for row in table["rows"]):
        return MegaVLMError.exit_code
    return CheckFailed.exit_code if table["unequal"] else 0


def readable(study: Study) -> str:
    """A study for people."""
    lines = [f"# {study.name}: {study.question}", f"recipe    {study.recipe} {shlex.join(study.overrides)}".rstrip()]
    lines += _variants(study)
    lines += [f"seeds     {', '.join(map(str, study.seeds))}", f"equal     {', '.join(study.equal) or 'nothing'}"]
    lines += [f"score     {name:<14}{_source(score)}" for name, score in study.scores.items()]
    lines += [f"rank      {', '.join(study.rank[1:])} against {study.rank[0]}"] if study.rank else []
    return "\n".join([*lines, *(f"published {table.title} ({table.source})" for table in study.published)])


def _variants(study: Study) -> list[str]:
    if study.search is None:
        return [f"variant   {row.name:<14} {_given(row)}".rstrip() for row in study.rows()]
    search = study.search
    start = plus(search.given) or f"the best {search.first} alone"
    lines = [f"search    {search.over} among {', '.join(search.names)}", f"start     {start}"]
    ends = "no candidate helps" if search.until == "no_gain" else f"none helps, or {search.until} rounds are over"
    return [*lines, f"best by   {', '.join(search.scores)}, {search.better or 'higher'}; until {ends}"]


def _given(variant: Variant) -> str:
    """What is its own: recipe, overrides, stages."""
    words = [f"of {variant.recipe}"] if variant.recipe else []
    words += [shlex.join(variant.overrides)] if variant.overrides else []
    words += [f"against {variant.against}"] if variant.against else []
    return "; ".join([*words, *([f"stages {', '.join(variant.stages)}"] if variant.stages else [])])


def _source(score: Score) -> str:
    of = f"suite {score.suite}" if score.suite else f"{score.metric}, mean of the last {score.over} steps"
    of += f", stage {score.stage}" + (f" minus {score.minus}" if score.minus else "")
    return of + (f", kind {score.kind}" if score.kind else "") + (", blind" * score.blind)
