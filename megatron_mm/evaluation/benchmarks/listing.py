"""What an evaluation would ask: each benchmark with its data, prompt, metric and what is missing. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..scorers import OURS
from .present import fetch_line, missing, snapshot
from .protocols import Asked, find_protocol
from .table import Benchmark, in_suite

IMAGE = "<image>\n"
QUESTION = "{question}"
OWN = "(as the library's task has it)"


def rows(suite: str, protocol: str, data: Path | None) -> list[dict[str, Any]]:
    """One row of a benchmark or of each in a group, under stable keys; raises ConfigError for unknown names.

    Without `data`, every benchmark is missing.
    """
    asked_by = find_protocol(protocol)
    return [
        _row(benchmark, asked_by.of(benchmark), data) | {"protocol": protocol, "max_tiles": asked_by.max_tiles}
        for benchmark in in_suite(suite)
    ]


def _row(benchmark: Benchmark, asked: Asked, data: Path | None) -> dict[str, Any]:
    place = data or Path("DATA")
    problems = [problem.what for problem in missing(benchmark, place)] if data else ["no folder of benchmarks is named"]
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "harness": benchmark.harness,
        "task": benchmark.task,
        "data": str(snapshot(benchmark, place)),
        "configuration": benchmark.configuration,
        "split": benchmark.split,
        "system": asked.system,
        "prompt": prompt(benchmark, asked),
        "prompt_open": asked.after_open and prompt(benchmark, asked.model_copy(update={"after": asked.after_open})),
        "shots": asked.shots,
        "decoding": asked.decoding,
        "max_new_tokens": asked.max_new_tokens,
        "options": asked.options,
        "metric": benchmark.metric.key,
        "metric_says": benchmark.metric.says,
        "scorer": _scorer(benchmark),
        "sources": asked.sources,
        "lacks": benchmark.lacks,
        "missing": problems,
        "fix": fetch_line(benchmark, place) if problems else None,
    }


def _scorer(benchmark: Benchmark) -> str:
    """Whose code scores: the library's, or the name of ours."""
    return benchmark.metric.scorer if benchmark.metric.scorer in OURS else benchmark.harness


def prompt(benchmark: Benchmark, asked: Asked) -> str:
    """The user's turn as it will read, the question (with its options) as {question}."""
    question = QUESTION if asked.before is None else asked.before + QUESTION
    after = f" {OWN}" if asked.after is None else asked.after and benchmark.gap + asked.after
    return (IMAGE if benchmark.group == "vl" else "") + question + after


def readable(listed: Sequence[dict[str, Any]]) -> str:
    """The rows for people, and how to get what is missing."""
    blocks = [_block(row) for row in listed]
    ready = sum(not row["missing"] for row in listed)
    head = f"{len(listed)} benchmark(s) by protocol {listed[0]['protocol']}, {ready} ready" if listed else "nothing"
    lines = list(dict.fromkeys(row["fix"] for row in listed if row["fix"]))
    return "\n".join([head, *blocks, *(["fetch what is missing:", *(f"  {line}" for line in lines)] if lines else [])])


def _block(row: dict[str, Any]) -> str:
    tiles = f", {row['max_tiles']} tiles" if row["max_tiles"] else ""
    told = {
        "data": f"{row['data']} {row['configuration'] or ''} {row['split']}".replace("  ", " "),
        "system": "(the template's own)" if row["system"] is None else repr(row["system"]),
        "prompt": repr(row["prompt"]),
        "open": repr(row["prompt_open"]) if row["prompt_open"] else "",
        "options": ", ".join(f"{name} {value}" for name, value in row["options"].items()),
        "asked": f"{row['shots']} shots, {row['decoding']}, up to {row['max_new_tokens']} tokens{tiles}",
        "metric": f"{row['metric']} by {row['scorer']}" + (f": {row['metric_says']}" if row["metric_says"] else ""),
    }
    lines = [f"  {key:<8}{text}" for key, text in told.items() if text]
    lines += [f"  {'not had':<8}{text}" for text in row["lacks"]] + [
        f"  {'MISSING':<8}{text}" for text in row["missing"]
    ]
    return "\n".join([f"{row['benchmark']}  {row['title']} ({row['harness']} {row['task']})", *lines])
