"""Benchmarks asked of any engine, and what they need before anything costly starts. Loads no torch by itself."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from megavlm.platform import sandbox
from megavlm.platform.errors import MissingPackage

from .benchmarks.present import require
from .benchmarks.protocols import Protocol
from .benchmarks.table import Benchmark
from .engines.base import Engine
from .harness import HARNESSES
from .predictions import About, Prediction


def require_all(wanted: Iterable[Benchmark], data: Path) -> None:
    """Raise InputError for data that are not there, MissingPackage for a library, ConfigError without a sandbox."""
    wanted = list(wanted)
    for harness in sorted({benchmark.harness for benchmark in wanted}):
        if importlib.util.find_spec(harness.replace("-", "_")) is None:
            raise MissingPackage(f"benchmarks need {harness}", fix='pip install "megavlm[eval]"')
    require(wanted, data)
    if any(benchmark.code for benchmark in wanted):
        sandbox.require()


def ask(
    engine: Engine,
    benchmark: Benchmark,
    data: Path,
    protocol: Protocol,
    limit: int | None = None,
    alive: Callable[[], object] = lambda: None,
) -> tuple[list[Prediction], About]:
    """Every item's prediction, or the first `limit`, and how it was asked. Raises as `require_all` does."""
    found = HARNESSES.load(benchmark.harness)(engine, benchmark, data, protocol, limit, alive)
    about = About(
        suite=benchmark.name,
        metric=benchmark.metric.says or benchmark.metric.key,
        protocol=protocol.name,
        task=f"{benchmark.harness} {version(benchmark.harness)}: {', '.join(benchmark.tasks)}",
        data=digest_of(found),
        limit=limit,
        engine=engine.name,
    )
    return found, about


def digest_of(predictions: Sequence[Prediction]) -> str:
    """What was asked, as a hash of ids and expected answers."""
    asked = [[item.id, item.expected] for item in predictions]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
