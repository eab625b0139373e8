"""HumanEval's own solutions, empty ones and forged ones: judged in the sandbox, and in one interpreter as is published.

The data are OpenAI's HumanEval.jsonl.gz (https://github.com/openai/human-eval, data/); HUMANEVAL says where it lies.
The other way of judging runs in a sandbox as well: program and tests as one program, which passes by ending with 0.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from megavlm.megatron_mm.evaluation.code import Outcome, Program, judge_code  # noqa: E402
from megavlm.platform import sandbox  # noqa: E402

DIGEST = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"  # of the file as OpenAI publishes it
SECONDS = 60.0
EQUALS = "    class Yes:\n        __eq__ = lambda self, other: True\n    return Yes()\n"
KINDS = {"its own solution": None, "nothing": "    pass\n", "an object that equals everything": EQUALS}


def programs(items: list[dict[str, str]], body: str | None) -> list[Program]:
    return [
        Program(
            item["task_id"],
            item["prompt"] + (item["canonical_solution"] if body is None else body),
            f"{item['test']}\ncheck({item['entry_point']})\n",
            given=item["prompt"],
            entry_point=item["entry_point"],
        )
        for item in items
    ]


def in_one_interpreter(program: Program) -> bool:
    text = f"{program.text}\n{program.tests}"
    return sandbox.run(text, limits=sandbox.Limits(seconds=SECONDS)).code == 0


def main() -> int:
    packed = Path(os.environ["HUMANEVAL"]).read_bytes()
    if (found := hashlib.sha256(packed).hexdigest()) != DIGEST:
        raise SystemExit(f"not the published file: sha256 {found}")
    items = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    rows, ours, times = [], {}, []
    for kind, body in KINDS.items():
        asked = programs(items, body)
        outcomes: list[Outcome] = judge_code(asked, seconds=SECONDS)
        times += [outcome.seconds for outcome in outcomes]
        ours[kind] = [outcome.id for outcome in outcomes if outcome.passed]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            passed = pool.map(in_one_interpreter, asked)
            theirs = [program.id for program, well in zip(asked, passed, strict=True) if well]
        rows.append((kind, len(ours[kind]), len(theirs), sorted(set(ours[kind]) ^ set(theirs))))
        print(*rows[-1], flush=True)
    write(rows, times, len(items))
    return 0 if len(ours["its own solution"]) == len(items) and not any(ours[kind] for kind in list(KINDS)[1:]) else 3


def write(rows: list[tuple[str, int, int, list[str]]], times: list[float], count: int) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [
        "# Model-written code, judged in two sandboxes and in one interpreter",
        "",
        f"## {time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}",
        "",
        "- command: HUMANEVAL=FILE make campaign NAME=code_judging",
        f"- data: HumanEval, {count} items, sha256 {DIGEST[:16]}; no seed, nothing is drawn",
        f"- machine: {os.cpu_count()} cores, other work beside it; bubblewrap {sandbox_version()}",
        "",
        "| every item's program | passes here | passes in one interpreter |",
        "|---|---|---|",
        *(f"| {kind} | {here} | {there} |" for kind, here, there, _ in rows),
        "",
        f"One program with its tests took {statistics.median(times):.2f} s (median), {max(times):.2f} s at most.",
    ]
    lines += [f"Verdicts differ on {kind}: {', '.join(differ)}." for kind, *_, differ in rows[:2] if differ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


def sandbox_version() -> str:
    return subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]


if __name__ == "__main__":
    sys.exit(main())
