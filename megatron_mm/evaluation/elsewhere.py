"""Benchmarks asked of a model that is no run of ours: a Hugging Face folder, or an endpoint. torch only with one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.errors import ConfigError, InputError

from .asking import ask, require_all
from .benchmarks.protocols import find_protocol
from .benchmarks.table import Benchmark
from .engines import ENGINES
from .predictions import read_about, write_predictions
from .told import of_file


def evaluate_elsewhere(args: argparse.Namespace, wanted: Sequence[Benchmark]) -> list[dict[str, Any]]:
    """A file of predictions for each benchmark in the folder --out, and what each says; those there are not made anew.

    Raises ConfigError for what is not said, InputError for data that are not there, before the model is loaded.
    """
    for option in ("data", "out"):
        if getattr(args, option) is None:
            raise ConfigError(f"--engine {args.engine} needs --{option}", where=f"--{option}", fix=f"--{option} FOLDER")
    protocol = find_protocol(args.protocol)
    require_all(wanted, args.data)
    missing = [benchmark for benchmark in wanted if args.fresh or not _there(args, benchmark)]
    if missing:
        engine = ENGINES.load(args.engine)(args.source, **_options(args))
        try:
            for benchmark in missing:
                found, about = ask(engine, benchmark, args.data, protocol, args.limit)
                write_predictions(_path(args, benchmark), found, about)
        finally:
            engine.close()
    return [of_file(_path(args, benchmark)) for benchmark in wanted]


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What only an endpoint takes."""
    given = {"model": args.model, "key_variable": args.key_from, "tokenizer": args.tokenizer}
    given |= {"max_length": args.max_length}
    if args.engine == "openai":
        if args.model is None:
            raise ConfigError("an endpoint may serve several models", where="--model", fix="--model NAME")
        return given
    if used := next((name for name, value in given.items() if value is not None), None):
        raise ConfigError(f"--engine {args.engine} takes no {used}", where="--engine", fix="leave it out")
    return {}


def _there(args: argparse.Namespace, benchmark: Benchmark) -> bool:
    """Whether its predictions are there; raises InputError where they are of another question."""
    path = _path(args, benchmark)
    if not path.exists():
        return False
    about = read_about(path)
    if (about.protocol, about.limit, about.engine) != (args.protocol, args.limit, args.engine):
        told = f"protocol {about.protocol}, limit {about.limit}, engine {about.engine}"
        raise InputError(f"there are answers by {told}", where=str(path), fix="another --out, or --fresh")
    print(f"using {path} (--fresh evaluates anew)", file=sys.stderr)
    return True


def _path(args: argparse.Namespace, benchmark: Benchmark) -> Path:
    return Path(args.out) / f"{benchmark.name}.jsonl"
