"""`megavlm data pack | inspect | stats`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser, split_overrides
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import default_runs_root

from .build import StageData, build_manifest, rejected_path
from .manifest import Manifest, Pack

PACKS = "packs.parquet"


def pack_main(argv: Sequence[str]) -> int:
    """Write the pack manifests of a recipe's stages."""
    words, overrides = split_overrides(argv)
    p = parser("data pack", epilog="example: megavlm data pack nvlm-d-mini --stage sft --out packs/")
    p.add_argument("recipe", help="a shipped recipe's name or a YAML file")
    p.add_argument("--stage", help="this stage only")
    p.add_argument("--out", type=Path, help="folder for STAGE/packs.parquet (default: runs/RECIPE/stages)")
    args = p.parse_args(words)
    recipe = load_recipe(args.recipe, overrides)
    out = args.out or default_runs_root() / recipe.name / "stages"
    names = [args.stage] if args.stage else list(recipe.section("stages").root)
    told = {}
    for name in names:
        path = out / name / PACKS
        told[name] = {"path": str(path), **stats(build_manifest(StageData.of(recipe, name), path))}
    _tell(told, args.json, lambda: "\n\n".join(f"{name}\n{_lines(row)}" for name, row in told.items()))
    return 0


def stats_main(argv: Sequence[str]) -> int:
    """Fill, tokens, tiles, samples by set, and the samples left out by reason."""
    p = parser("data stats")
    p.add_argument("packs", type=Path, help="a packs.parquet")
    args = p.parse_args(argv)
    told = stats(Manifest(args.packs))
    _tell(told, args.json, lambda: _lines(told))
    return 0


def inspect_main(argv: Sequence[str]) -> int:
    """What one packed sequence holds."""
    p = parser("data inspect", epilog="example: megavlm data inspect runs/nvlm-d-mini/stages/sft/packs.parquet --row 7")
    p.add_argument("packs", type=Path, help="a packs.parquet")
    p.add_argument("--row", type=int, default=0, help="number of the packed sequence, from 0")
    args = p.parse_args(argv)
    manifest = Manifest(args.packs)
    pack = manifest[args.row]
    _tell({"row": pack.row} | pack.record(), args.json, lambda: _readable(pack, manifest.sequence_length))
    return 0


def stats(manifest: Manifest) -> dict[str, Any]:
    """The figures of a manifest under stable keys."""
    tokens, capacity = manifest.column("tokens"), manifest.sequence_length
    entries = [entry for samples in manifest.column("samples") for entry in samples]
    return {
        "packs": len(manifest),
        "batches": len(manifest) // manifest.packs_per_batch,
        "sequence_length": capacity,
        "fill": round(sum(tokens) / max(len(tokens) * capacity, 1), 4),
        "samples": len(entries),
        "samples_by_set": dict(sorted(Counter(entry["set"] for entry in entries).items())),
        "epochs_by_set": {
            name: 1 + max(e["epoch"] for e in entries if e["set"] == name) for name in manifest.fingerprint["sets"]
        },
        "tokens": sum(tokens),
        "tokens_learnt": sum(manifest.column("targets")),
        "tiles": sum(manifest.column("tiles")),
        "packs_without_image": manifest.column("tiles").count(0),
        "rejected": rejected_counts(manifest.path),
    }


def rejected_counts(path: Path) -> dict[str, int]:
    """reason -> number of samples left out of the manifest at `path`."""
    side = rejected_path(path)
    lines = side.read_text().splitlines() if side.exists() else []
    return dict(sorted(Counter(json.loads(line)["reason"] for line in lines).items()))


def _readable(pack: Pack, capacity: int) -> str:
    head = f"row {pack.row}, global batch {pack.batch}: {pack.tokens} of {capacity} tokens, "
    head += f"{pack.targets} learnt, {pack.tiles} tiles"
    rows = [f"  {'set':<16}{'key':<32}{'tokens':>7}{'learnt':>8}{'tiles':>7}{'pass':>6}{'weight':>8}"]
    for e in pack.samples:
        sizes = f"{e.tokens:>7}{e.targets:>8}{e.tiles:>7}{e.epoch + 1:>6}{e.weight:>8g}"
        rows.append(f"  {e.set:<16}{e.key:<32}{sizes}")
    return "\n".join([head, *rows])


def _lines(row: dict[str, Any]) -> str:
    return "\n".join(f"  {key:<20}{value}" for key, value in row.items())


def _tell(data: Any, as_json: bool, text: Any) -> None:
    print(json.dumps(data, indent=2) if as_json else text())
