"""Protocols: how a paper asks each benchmark, every value with its source. A new one is a YAML file beside this one."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any, Literal

from megavlm.platform.config import Config
from megavlm.platform.config.tree import parse_yaml
from megavlm.platform.errors import ConfigError, did_you_mean

from .table import Benchmark, benchmarks

NO_PROTOCOLS = {"table"}  # YAML files here that are something else


class Asked(Config):
    """How one benchmark is asked. null leaves a text as the library's task, or the model's template, has it.

    `before` and `after` stand around the question, `after_open` after one without options where a benchmark has both
    kinds; `options` are further settings of the library's task; `sources` says where each value stands.
    """

    system: str | None
    before: str | None
    after: str | None
    after_open: str | None = None
    shots: int
    max_new_tokens: int
    decoding: Literal["greedy"] = "greedy"
    options: dict[str, Any] = {}
    sources: dict[str, str]


class Protocol(Config):
    """The way of one paper, for every benchmark of the table."""

    name: str
    title: str
    max_tiles: int | None = None  # tiles of an image in place of the recipe's; null: as the recipe says
    sources: dict[str, str] = {}
    benchmarks: dict[str, Asked]

    def of(self, benchmark: Benchmark) -> Asked:
        """How this benchmark is asked."""
        return self.benchmarks[benchmark.name]


def list_protocols() -> list[str]:
    """Names of the protocols, sorted."""
    found = {path.name.removesuffix(".yaml") for path in files(__package__).iterdir() if path.name.endswith(".yaml")}
    return sorted(found - NO_PROTOCOLS)


@functools.cache
def find_protocol(name: str) -> Protocol:
    """The protocol of this name; raises ConfigError with the nearest one, and for a benchmark it does not know."""
    if name not in list_protocols():
        raise ConfigError(f"unknown protocol '{name}'", where="--protocol", fix=did_you_mean(name, list_protocols()))
    where = f"benchmarks/{name}.yaml"
    read = parse_yaml(files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"), where=where)
    default, own = read.pop("default"), read.pop("benchmarks")
    for unknown in own.keys() - benchmarks().keys():
        raise ConfigError(f"unknown benchmark '{unknown}'", where=where, fix=did_you_mean(unknown, benchmarks()))
    rows = {benchmark: _over(default, own.get(benchmark, {})) for benchmark in benchmarks()}
    protocol: Protocol = Protocol.parse({"name": name, "benchmarks": rows, **read}, where=where)
    return protocol


def _over(default: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A benchmark's own values over the default; here null is a value (the task's own text), and sources merge."""
    return {**default, **own, "sources": {**default["sources"], **own.get("sources", {})}}
