"""`megavlm data pack | inspect | stats | trace`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import default_runs_root, find_run
from megavlm.platform.shards import ShardReader

from .build import StageData, build_manifest
from .manifest import Entry, Manifest, Pack
from .sets import require_ratios
from .stats import stats
from .trace import trace_sample, trace_step

PACKS = "packs"
BAR = 40  # characters of the histogram's longest bar

TRACE_EPILOG = """\
examples:
  megavlm data trace vqa/000123 --packs runs/nvlm-d-mini/stages/sft/packs     where a sample is learnt
  megavlm data trace nvlm-d-mini --stage sft --step 40                        what a run's step learnt from
"""


def pack_main(argv: Sequence[str]) -> int:
    """Write the pack manifests of a recipe's stages."""
    words, overrides = split_overrides(argv)
    p = parser("data pack", epilog="example: megavlm data pack nvlm-d-mini --stage sft --out packs/")
    p.add_argument("recipe", help="a shipped recipe's name or a YAML file")
    p.add_argument("--stage", help="this stage only")
    p.add_argument("--out", type=Path, help="folder for STAGE/packs (default: runs/RECIPE/stages)")
    p.add_argument("--dry-run", action="store_true", help="only tell what would be packed, after a look at the sets")
    args = p.parse_args(words)
    recipe = load_recipe(args.recipe, overrides)
    out = args.out or default_runs_root() / recipe.name / "stages"
    names = [args.stage] if args.stage else list(recipe.section("stages").root)
    for name in names:
        require_ratios(name, recipe.section("stages")[name], recipe.sources)
    if args.dry_run:
        planned = {name: _planned(StageData.of(recipe, name), out / name / PACKS) for name in names}
        _tell(planned, args.json, lambda: "\n".join(f"{name}\n{_plain(row)}" for name, row in planned.items()))
        return 0
    told = {}
    for name in names:
        path = out / name / PACKS
        cache = args.out / ".measured" if args.out else None
        told[name] = {"path": str(path), **stats(build_manifest(StageData.of(recipe, name), path, cache=cache))}
    _tell(told, args.json, lambda: "\n\n".join(f"{name}\n{_figures(row)}" for name, row in told.items()))
    return 0


def _planned(spec: StageData, path: Path) -> dict[str, Any]:
    mixture = spec.stage.mixture
    of = mixture.global_batch
    samples = {name: len(reader) for name, reader in spec.open_sets().items()}
    text = {"sets": mixture.text_sets, "asked": mixture.text_share, "of": mixture.text_share_of}
    size = f"{of.size} {of.unit}"
    return {"path": str(path), "batches": spec.stage.steps, "batch": size, "samples": samples, "text": text}


def stats_main(argv: Sequence[str]) -> int:
    """Fill, tokens, tiles, samples by set and length, and the samples left out by reason."""
    p = parser("data stats", epilog="example: megavlm data stats runs/nvlm-d-mini/stages/sft/packs")
    p.add_argument("packs", type=Path, help="a stage's folder of packs")
    args = p.parse_args(argv)
    told = stats(Manifest(args.packs))
    _tell(told, args.json, lambda: _figures(told))
    return 0


def inspect_main(argv: Sequence[str]) -> int:
    """What one packed sequence holds, or all those of a global batch."""
    p = parser("data inspect", epilog="example: megavlm data inspect runs/nvlm-d-mini/stages/sft/packs --row 7")
    p.add_argument("packs", type=Path, help="a stage's folder of packs")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--row", type=int, default=0, help="number of the packed sequence, from 0")
    which.add_argument("--batch", type=int, help="number of a global batch, from 0")
    args = p.parse_args(argv)
    manifest = Manifest(args.packs)
    packs = [manifest[args.row]] if args.batch is None else manifest.batch(args.batch)
    keys = _Keys(manifest)
    records = [_named(pack, keys) for pack in packs]
    told = records[0] if args.batch is None else {"batch": args.batch, "packs": records}
    _tell(told, args.json, lambda: "\n".join(_readable(pack, keys, manifest.sequence_length) for pack in packs))
    return 0


def trace_main(argv: Sequence[str]) -> int:
    """A sample to the packs and steps that hold it, or a run's step to its samples."""
    p = parser("data trace", epilog=TRACE_EPILOG)
    p.add_argument("what", help="a sample (SET/KEY, SET#NUMBER or KEY) with --packs, or a run with --stage and --step")
    p.add_argument("--packs", type=Path, help="the stage's folder of packs that the sample is looked for in")
    p.add_argument("--stage", help="a stage of the run")
    p.add_argument("--step", type=int, help="a step of that stage, from 1 as the metrics count them")
    args = p.parse_args(argv)
    if (args.packs is None) == (args.stage is None) or (args.stage is None) != (args.step is None):
        raise ConfigError("what to trace is not clear", fix="SAMPLE --packs PACKS, or RUN --stage STAGE --step N")
    if args.packs is not None:
        manifest = Manifest(args.packs)
        told = trace_sample(manifest, _open_sets(manifest), args.what)
        _tell(told, args.json, lambda: _places(told))
        return 0
    told = _step(args)
    _tell(told, args.json, lambda: _step_lines(told))
    return 0


def _step(args: argparse.Namespace) -> dict[str, Any]:
    run = find_run(args.what)
    manifest = Manifest(run.path("stages", args.stage, PACKS))
    spec = StageData.of(load_recipe(str(run.path("config.yaml"))), args.stage)
    return {"run": str(run.root), "stage": args.stage} | trace_step(
        manifest, manifest.open_sets(spec.folders()), args.step
    )


def _open_sets(manifest: Manifest) -> dict[str, ShardReader]:
    return manifest.open_sets({told["name"]: told["folder"] for told in manifest.sets})


class _Keys:
    """Samples' keys, or their numbers where the set is no longer where it was packed."""

    def __init__(self, manifest: Manifest) -> None:
        self._sets: Mapping[str, ShardReader] = _open_sets(manifest)

    def of(self, entry: Entry) -> str:
        try:
            return self._sets[entry.set].key(entry.index)
        except InputError:
            return f"#{entry.index}"


def _named(pack: Pack, keys: _Keys) -> dict[str, Any]:
    record = pack.record()
    for told, entry in zip(record["entries"], pack.entries, strict=True):
        told["key"] = keys.of(entry)
    return record


def _readable(pack: Pack, keys: _Keys, capacity: int) -> str:
    head = f"row {pack.row}, global batch {pack.batch}: {pack.tokens} of {capacity} tokens, "
    head += f"{pack.targets} learnt, {pack.tiles} tiles"
    rows = [f"  {'set':<16}{'key':<32}{'tokens':>7}{'learnt':>8}{'tiles':>7}{'pass':>6}{'weight':>8}"]
    for e in pack.entries:
        sizes = f"{e.tokens:>7}{e.targets:>8}{e.tiles:>7}{e.epoch + 1:>6}{e.weight:>8g}"
        rows.append(f"  {e.set:<16}{keys.of(e):<32}{sizes}")
    return "\n".join([head, *rows])


def _places(told: dict[str, Any]) -> str:
    head = f"{told['set']}/{told['key']} (sample {told['index']}): {told['times']} time(s)"
    lines = [
        f"  step {p['step']:<10} row {p['row']:<12} place {p['place']:<5} pass {p['epoch']}" for p in told["places"]
    ]
    return "\n".join([head, *lines])


def _step_lines(told: dict[str, Any]) -> str:
    head = f"{told['run']}, stage {told['stage']}, step {told['step']}: {len(told['samples'])} samples in "
    rows = [
        f"{head}{told['packs']} packs",
        f"  {'row':>9}  {'set':<16}{'key':<32}{'tokens':>7}{'learnt':>8}{'tiles':>7}",
    ]
    for s in told["samples"]:
        rows.append(f"  {s['row']:>9}  {s['set']:<16}{s['key']:<32}{s['tokens']:>7}{s['targets']:>8}{s['tiles']:>7}")
    return "\n".join(rows)


def _plain(row: dict[str, Any]) -> str:
    return "\n".join(f"  {key:<28}{value}" for key, value in row.items())


def _figures(row: dict[str, Any]) -> str:
    plain = _plain({key: value for key, value in row.items() if key != "lengths"})
    most = max(row["lengths"].values(), default=0) or 1
    bars = (f"  {end:>7} {'█' * round(BAR * n / most):<{BAR}} {n}" for end, n in row["lengths"].items())
    return "\n".join([plain, "  samples by length, up to so many tokens", *bars])


def _tell(data: Any, as_json: bool, text: Callable[[], str]) -> None:
    print(json.dumps(data, indent=2) if as_json else text())
