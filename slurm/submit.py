"""`megavlm submit`: checks all that can be known before queueing, then prints the scripts or queues them."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.errors import CheckFailed, ConfigError, MissingPackage
from megavlm.platform.runs import default_runs_root, find_run

from . import checks, commands, foresight, partitions, send, work
from .partitions import Partition
from .profile import ClusterProfile, load_profile
from .submission import Planned, Submission, prepare
from .work import Work

EPILOG = """\
examples:
  megavlm submit nvlm-d-mini --cluster local-test --nodes 2 --dry-run      the scripts, and what Slurm would say
  megavlm submit --cluster local-test -- curate run curate-demo            any other verb, in a job of its own
"""


def main(argv: Sequence[str]) -> int:
    """Submit a recipe's stages or any verb. Exit codes: 0 queued (or could be), 2 refused, 3 Slurm would refuse it."""
    argv = list(argv)
    own, verb = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, None)
    words, overrides = split_overrides(own)
    args = _arguments(words)
    profile = adjusted(load_profile(args.cluster), args)
    if args.nodes is None:
        args.nodes = _nodes(args, overrides, profile)
    checks.check_limits(profile, args.nodes, args.spares)
    partition, notes = _partition(profile, args)
    todo = _work(args, overrides, verb, profile)
    notes += _check(profile, todo, args, overrides)
    if not todo.pieces:
        return _nothing_to_do(todo, args.json)
    successor = not profile.requeue or (partition is not None and partition.cancels)
    after = find_run(args.after) if args.after else None
    submission = prepare(todo, profile, args.nodes, args.spares, successor, after)
    if args.dry_run:
        return _show(submission, notes, partition is not None, args.json)
    _tell(notes)
    return _send(submission, ["megavlm", "submit", *argv], args.json)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    p = parser("submit", epilog=EPILOG)
    p.add_argument("recipe", nargs="?", help="a recipe's name or file: one job per unfinished stage; or `-- VERB ARGS`")
    p.add_argument("--cluster", required=True, help="a cluster profile's name or its YAML file")
    p.add_argument("--stage", help="this stage of the recipe only")
    p.add_argument("--out", type=Path, help="run folder (default: runs/RECIPE, or the verb's own --out, or runs/VERB)")
    p.add_argument("--name", help="the run's name under runs/ instead of the recipe's or verb's")
    p.add_argument(
        "--nodes", type=int, help="machines of one job (default: the fewest that the layouts need; a verb: 1)"
    )
    p.add_argument("--spares", type=int, default=0, help="so many machines more, to take the place of one that dies")
    p.add_argument("--minutes", type=int, help="time limit of a job; what is left goes on in the next one")
    p.add_argument("--partition", help="instead of the profile's")
    p.add_argument("--gpus-per-node", type=int, help="instead of the profile's")
    p.add_argument("--after", metavar="RUN", help="start when the jobs of this run have ended well")
    p.add_argument(
        "--dry-run", action="store_true", help="stdout is the script as it would be submitted; write nothing"
    )
    if lost := next((word for word in words if re.fullmatch(r"--[a-z-]+=--", word)), None):
        raise ConfigError(f"'{lost}' has no value", where="submit", fix="give another one")  # argparse drops it
    return p.parse_args(words)


def adjusted(profile: ClusterProfile, args: argparse.Namespace) -> ClusterProfile:
    """The profile with what the command line says instead; raises ConfigError as for a profile."""
    given = {key: getattr(args, key) for key in ("minutes", "partition", "gpus_per_node")}
    changed = {key: value for key, value in given.items() if value is not None}
    own: ClusterProfile = ClusterProfile.parse(profile.model_dump(mode="json") | changed, where="command line")
    return own


def _nodes(args: argparse.Namespace, overrides: list[str], profile: ClusterProfile) -> int:
    """How many when nobody says."""
    return work.fewest_nodes(args.recipe, overrides, profile.processes, args.stage) if args.recipe else 1


def _work(args: argparse.Namespace, overrides: list[str], verb: list[str] | None, profile: ClusterProfile) -> Work:
    """What the command line asks for, in either form."""
    if (args.recipe is None) == (not verb):
        fix = "megavlm submit RECIPE --cluster NAME, or megavlm submit --cluster NAME -- VERB ARGS"
        raise ConfigError("give a recipe, or -- and a verb" + (", not both" if verb else ""), where="submit", fix=fix)
    if verb:
        if args.stage is not None or overrides:
            fix = "write what the verb is to get after --"
            raise ConfigError("--stage and overrides belong to a recipe", where=f"{overrides or args.stage}", fix=fix)
        return work.of_verb(verb, args.out, args.name)
    out = args.out or (default_runs_root() / work.check_name(args.name) if args.name else None)
    return work.of_recipe(args.recipe, overrides, out, args.nodes, profile.processes, args.stage)


def _partition(profile: ClusterProfile, args: argparse.Namespace) -> tuple[Partition | None, list[str]]:
    """The partition the jobs will go to, checked; in a dry run None, and a note, where Slurm cannot be asked."""
    try:
        partition = checks.chosen_partition(profile, partitions.ask())
    except (commands.SlurmError, MissingPackage) as error:
        if not args.dry_run:
            raise
        return None, [f"Slurm cannot be asked, so partition, nodes and time are unchecked: {error.what}"]
    checks.check_partition(profile, args.nodes, args.spares, partition)
    return partition, []


def _check(profile: ClusterProfile, todo: Work, args: argparse.Namespace, overrides: list[str]) -> list[str]:
    """The rest of the checks; returns what is worth telling."""
    checks.check_image(profile)
    checks.check_folder(todo.run)
    stages = [stage for stage in todo.plan.get("stages", []) if stage["name"] in {piece.name for piece in todo.pieces}]
    trained = [stage["name"] for stage in stages if stage["steps"]]
    fits = foresight.check_plan(profile, args.recipe, overrides, trained, args.nodes) if trained else []
    return [*todo.plan.get("notes", []), *([checks.check_disk(todo.run, stages)] if stages else []), *fits]


def _nothing_to_do(todo: Work, as_json: bool) -> int:
    print(f"every stage of {todo.run} is finished: nothing to submit", file=sys.stderr)
    if as_json:
        print(json.dumps({"run": str(todo.run), "jobs": []}, indent=2))
    return 0


def _show(submission: Submission, notes: list[str], asked: bool, as_json: bool) -> int:
    """A dry run: the scripts on stdout, everything else on stderr. Raises CheckFailed for what sbatch would refuse."""
    shown = _shown(submission)
    verdicts = [_verdict(planned) for planned in submission.planned] if asked else []
    refused = next((verdict for accepted, verdict in verdicts if not accepted), None)
    _tell([*notes, *(shlex.join(job["sbatch"]) for job in shown), *(verdict for _, verdict in verdicts)])
    if not as_json:
        print("".join(planned.text for planned in submission.planned), end="")
    if refused:
        raise CheckFailed(refused, where="sbatch --test-only", fix="see what there is: sinfo -o '%P %D %c %G %l'")
    if as_json:
        told = {"run": str(submission.run), "jobs": shown, "notes": notes}
        print(json.dumps(told | {"verdicts": [verdict for _, verdict in verdicts]}, indent=2))
    return 0


def _shown(submission: Submission) -> list[dict[str, Any]]:
    """The jobs as plain data, each with the command that will queue it; ids that there are not yet stand as <NAME>."""
    names = {planned.piece.name: f"<{planned.piece.name}>" for planned in submission.planned}
    return [
        {
            "name": planned.piece.name,
            "command": list(planned.job.command),
            "script": planned.text,
            "sbatch": send.sbatch_words(planned.script, send.afterok(planned.conditions(names))),
        }
        for planned in submission.planned
    ]


def _verdict(planned: Planned) -> tuple[bool, str]:
    """Whether Slurm would take the script, and when it would start, in Slurm's words."""
    done = commands.attempt("sbatch", "--test-only", text=planned.text)
    lines = [line.removeprefix("sbatch: ") for line in done.stderr.splitlines() if line.strip()]
    return done.returncode == 0, f"{planned.piece.name}: {'; '.join(lines) or done.returncode}"


def _send(submission: Submission, command: list[str], as_json: bool) -> int:
    sent = submission.send(command)
    if as_json:
        print(json.dumps({"run": str(submission.run), "jobs": [job.record() for job in sent]}, indent=2))
        return 0
    print(f"run {submission.run}")
    for job in sent:
        after = f", after {', '.join(map(str, job.after))}" if job.after else ""
        print(f"  job {job.job_id}  {job.name}: {job.nodes} nodes{after}")
    run = shlex.quote(str(submission.run))
    print(
        "next:",
        *(f"  megavlm {words}" for words in (f"status {run}", f"logs {run} --follow", f"cancel {run}")),
        sep="\n",
    )
    return 0


def _tell(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)
