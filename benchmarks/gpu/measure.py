"""Everything that is to be measured on a GPU, in parts that each end well within ten minutes; see README.md.

    python benchmarks/gpu/measure.py [PART ...] [--out FOLDER] [--before figures.json] [--dry-run]

FOLDER ($OUT, or build/gpu-figures) gets figures.json and figures.md, written anew after every part. Parts that stand in
the --before file already are kept and not measured again. --dry-run takes tiny sizes, which is how it runs on a CPU.
Exit codes: 0 ok, 1 where a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/megatron_mm/test_gpu.py", "tests/kernels")
LEFT_OUT = ("--ignore", "tests/kernels/test_torchvision.py")  # about imports, not about a device


def tests(dry: bool, ceilings: dict[str, Any]) -> dict[str, Any]:
    """The tests on this device: counts, and the last lines of what failed."""
    chosen = ["-k", "collectives"] if dry else []
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run([*command, *TESTS, *LEFT_OUT], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines() or [done.stderr[-500:]]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", lines[-1])}
    return {"counts": counts, "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))]}


def losses(dry: bool, ceilings: dict[str, Any]) -> list[dict[str, Any]]:
    """The curves on this device, and float32's on the CPU of the same machine."""
    import training_times
    from timing import CUDA

    rows = training_times.losses(dry, ceilings)
    if CUDA:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "losses", "--out", folder, *(["--dry-run"] if dry else [])]
            subprocess.run(command, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OUT": folder})
            rows += json.loads((Path(folder) / "figures.json").read_text())["losses"]["found"]
    return rows


def _from(module: str, name: str) -> Callable[[bool, dict[str, Any]], Any]:
    """A part whose module is loaded when it is its turn: one that does not import spoils no other."""
    return lambda dry, ceilings: getattr(__import__(module), name)(dry, ceilings)


PARTS: dict[str, Callable[[bool, dict[str, Any]], Any]] = {
    "tests": tests,
    "kernels": _from("kernel_times", "kernels"),
    "layers": _from("layer_times", "layers"),
    "attention": _from("layer_times", "attention"),
    "speed": _from("training_times", "speed"),
    "losses": losses,
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build/gpu-figures"))
    parser.add_argument("--before", type=Path, help="figures.json of parts that are done")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes: shows that everything runs")
    options = parser.parse_args(argv)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    figures = json.loads(options.before.read_text()) if options.before else {}
    if "machine" not in figures:
        import timing

        figures["machine"] = timing.ceilings(options.dry_run) | {"commit": _commit(), "dry_run": options.dry_run}
    for name in options.parts or PARTS:
        if "found" not in figures.get(name, {}):
            figures[name] = _part(name, options.dry_run, figures["machine"])
            write(options.out, figures)
    write(options.out, figures)
    return int(any(_failed(figures[name]) for name in options.parts or PARTS))


def _failed(told: dict[str, Any]) -> bool:
    found = told.get("found")
    return found is None or any(row.get("failed") for row in (found if isinstance(found, list) else [found]))


def _part(name: str, dry: bool, ceilings: dict[str, Any]) -> dict[str, Any]:
    start = time.monotonic()
    try:
        told: dict[str, Any] = {"found": PARTS[name](dry, ceilings)}
    except Exception:  # the other parts are still worth their time
        told = {"error": traceback.format_exc()[-3000:]}
    print(f"{name}: {'failed' if 'error' in told else 'done'} in {time.monotonic() - start:.0f} s", flush=True)
    return told | {"took": time.monotonic() - start}


def write(folder: Path, figures: dict[str, Any]) -> None:
    """figures.json, and the same as tables."""
    for name, text in (("figures.json", json.dumps(figures, indent=1) + "\n"), ("figures.md", tables(figures))):
        unfinished = folder / f".{name}"
        unfinished.write_text(text)
        unfinished.rename(folder / name)


def tables(figures: dict[str, Any]) -> str:
    """One table per part."""
    machine = figures["machine"]
    lines = [f"# On {machine['device']}", "", *(f"- {key}: {_cell(value)}" for key, value in machine.items())]
    for name, told in figures.items():
        if name != "machine":
            found = told.get("found", {"error": told.get("error")})
            lines += [
                "",
                f"## {name}",
                "",
                *_table([_flat(row) for row in (found if isinstance(found, list) else [found])]),
            ]
    return "\n".join(lines) + "\n"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= {f"{key} {k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _table(rows: list[dict[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [" | ".join(keys), " | ".join("---" for _ in keys)]
    lines += [" | ".join(_cell(row.get(key, "")) for key in keys) for row in rows]
    return [f"| {line} |" for line in lines]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(each) for each in value[:3] + value[-1:])
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")


def _commit() -> str | None:
    """None outside a checkout."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
