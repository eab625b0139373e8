"""`megavlm eval`: held-out sets and benchmarks, beside chance and the blind control, and the paired gate. No torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.runs import RunFolder, find_run

from ..checkpoints.listing import Source, latest, names_checkpoint, resolve
from ..config import Gate, Stages
from .benchmarks.listing import readable as listed
from .benchmarks.listing import rows
from .benchmarks.protocols import find_protocol, list_protocols
from .benchmarks.table import find_benchmark, is_benchmark
from .elsewhere import evaluate_elsewhere
from .engines import ENGINES
from .ensure import data_override, ensure_predictions
from .stage import BLIND, PLAIN, PLAINLY, judge_gate
from .suites import expanded
from .told import outcome, readable

PROTOCOL = PLAINLY.protocol
EPILOG = """\
examples:
  megavlm eval nvlm-d-mini --stage sft --suite vqa --blind
  megavlm eval nvlm-d-mini --stage sft --suite text --baseline language --max-drop 0.02
  megavlm eval runs/nvlm-d-72b --stage sft --suite language --data data/benchmarks
  megavlm eval exported/ --engine hf --suite mmlu --data data/benchmarks --out answers/exported
  megavlm eval --suite vl --protocol nvlm --dry-run       what would be asked, how it is judged, what is missing
exit codes with --baseline: 0 the drop is within --max-drop, 3 it is beyond, 5 more items are needed to tell
"""


def main(argv: Sequence[str]) -> int:
    """Evaluate a model, or read what was evaluated before; returns the gate's exit code."""
    args = _arguments(argv)
    suites = expanded(args.suite)
    benchmarks = [find_benchmark(suite) for suite in suites if is_benchmark(suite)]
    find_protocol(args.protocol or PROTOCOL)
    if args.dry_run:
        return _list(args)
    if args.source is None:
        raise ConfigError("nothing to evaluate is named", where="megavlm eval", fix="megavlm eval RUN --suite ...")
    if args.engine != "megatron":
        args.protocol = args.protocol or PROTOCOL
        if len(benchmarks) < len(suites):
            raise ConfigError(f"suite '{args.suite}' is of a run", where="--engine", fix="leave --engine out")
        told = evaluate_elsewhere(args, benchmarks)
        print(json.dumps({"suites": told}, indent=2) if args.json else "\n".join(map(readable, told)))
        return 0
    return _of_run(args, suites)


def _of_run(args: argparse.Namespace, suites: Sequence[str]) -> int:
    run, checkpoint = _source(args)
    recipe = load_recipe(str(run.path("config.yaml")), data_override(args.data))
    stages: Stages = recipe.section("stages")
    own = next((stage for stage in stages.gates.values() if stage.judges == args.stage), None)
    args.protocol = args.protocol or (own.protocol if own else PROTOCOL)
    gate = gate_asked_for(args, stages, suites)
    if gate and gate.baseline in stages.root:
        ensure_predictions(run, recipe, gate.baseline, args, suites, [PLAIN])
    ways = [PLAIN, BLIND] if args.blind else [PLAIN]
    ensure_predictions(run, recipe, args.stage, args, suites, ways, checkpoint)
    result = judge_gate(run, args.stage, gate, checkpoint) if gate else None
    options: dict[str, Any] = {"blind": args.blind, "checkpoint": checkpoint}
    each = [outcome(run, args.stage, suite, **options) for suite in suites]
    told = each[0] if len(each) == 1 else {"run": str(run.root), "stage": args.stage, "suites": each}
    if result:
        told["gate"] = result.to_json()
    lines = [*map(readable, each), *([f"gate {result.sentence()}"] if result else [])]
    print(json.dumps(told, indent=2) if args.json else "\n".join(lines))
    return result.exit_code if result else 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = parser("eval", epilog=EPILOG)
    p.add_argument("source", nargs="?", metavar="RUN|CKPT|FOLDER|URL", help="a run, or a checkpoint's folder in one; "
                   "with --engine hf a Hugging Face folder, with openai an endpoint")  # fmt: skip
    p.add_argument("--stage", help="the trained stage to judge; a checkpoint's folder says it by itself")
    p.add_argument("--suite", required=True, help="text, vqa, a benchmark, language or vl")
    p.add_argument("--set", help="held-out set of the recipe (default: the one the stages name for this suite)")
    p.add_argument("--blind", action="store_true", help="also the blind control: every item sees another item's image")
    p.add_argument("--baseline", metavar="STAGE|RUN:STAGE|FOLDER", help="gate: compare with these, item by item")
    p.add_argument("--max-drop", type=float, help="gate: largest tolerated loss of the average, as a fraction")
    p.add_argument("--fresh", action="store_true", help="evaluate anew what was evaluated before")
    p.add_argument("--engine", choices=sorted(ENGINES), default="megatron", help="who answers (default: megatron)")
    p.add_argument("--protocol", help=f"how benchmarks are asked, one of {', '.join(list_protocols())} "
                   f"(default: as the gate of this stage, else {PROTOCOL})")  # fmt: skip
    p.add_argument("--data", type=Path, help="folder of the benchmarks' snapshots, ORG/NAME")
    p.add_argument("--limit", type=int, help="the first so many items of each benchmark")
    p.add_argument("--out", type=Path, help="hf, openai: folder for the predictions")
    p.add_argument("--model", help="openai: which of the endpoint's models")
    p.add_argument("--key-from", metavar="VARIABLE", help="openai: environment variable that holds the API key")
    p.add_argument("--tokenizer", type=Path, help="openai: folder with the model's tokenizer, for log-likelihoods")
    p.add_argument("--max-length", type=int, help="openai: tokens the model reads, where the endpoint does not say it")
    p.add_argument("--dry-run", action="store_true", help="list what would be asked, and what is missing")
    return p.parse_args(argv)


def _list(args: argparse.Namespace) -> int:
    if not is_benchmark(args.suite):
        raise ConfigError(f"suite '{args.suite}' is a held-out set of a run", where="--dry-run", fix="--suite vl")
    told = rows(args.suite, args.protocol or PROTOCOL, args.data)
    print(json.dumps({"suite": args.suite, "benchmarks": told}, indent=2) if args.json else listed(told))
    return 0


def _source(args: argparse.Namespace) -> tuple[RunFolder, Path | None]:
    """The run, and the checkpoint where one was named that is not its stage's newest; completes args.stage.

    Predictions that stand in the run folder need no checkpoint: so that is not looked for here.
    """
    if names_checkpoint(args.source):
        source = resolve(args.source, args.stage)
        args.stage = source.stage
        return source.run, None if source.checkpoint == _newest(source) else source.checkpoint
    if args.stage is None:
        raise ConfigError("a run has several stages", where="--stage", fix="name the stage to judge with --stage")
    return find_run(args.source), None


def _newest(source: Source) -> Path | None:
    newest = latest(source.run, source.stage)
    return newest.resolve() if newest else None


def gate_asked_for(args: argparse.Namespace, stages: Stages, suites: Sequence[str]) -> Gate | None:
    """The gate that --baseline and --max-drop describe; the recipe's gate of this stage gives what is left out."""
    own = next((stage.gate for stage in stages.gates.values() if stage.judges == args.stage), None)
    if args.baseline is None:
        if args.max_drop is not None:
            raise ConfigError("--max-drop needs --baseline", fix="name the stage to compare with")
        return None
    if not set(args.baseline) & {":", "/"}:
        stages[args.baseline]  # raises ConfigError for an unknown stage
    max_drop = args.max_drop if args.max_drop is not None else own.max_drop if own else None
    if max_drop is None:
        raise ConfigError("--baseline needs --max-drop", where="--max-drop", fix="--max-drop 0.02")
    confidence = own.confidence if own else 0.95
    return Gate(suites=list(suites), baseline=args.baseline, max_drop=max_drop, confidence=confidence)
