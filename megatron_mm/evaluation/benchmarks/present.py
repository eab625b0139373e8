"""Whether a benchmark's data are there, whole, and the line that fetches them. Nothing is ever downloaded. No torch."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from megavlm.platform.config.tree import parse_yaml
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.storage import safe_join

from .table import Benchmark

PARQUET = b"PAR1"  # stands at both ends of a whole file
SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?\.parquet")
HALF = ".incomplete"  # how `hf download` calls a file under way


@dataclasses.dataclass(frozen=True)
class Missing:
    """Something a benchmark needs and `where` has not; `fix` is the line to run."""

    benchmark: str
    what: str
    where: str
    fix: str


def snapshot(benchmark: Benchmark, data: Path) -> Path:
    """The folder of the benchmark's repository: DATA/ORG/NAME."""
    return Path(safe_join(str(data), benchmark.repository))


def fetch_line(benchmark: Benchmark, data: Path) -> str:
    """The command that brings the benchmark's data."""
    place = shlex.quote(str(snapshot(benchmark, data)))
    return f"hf download --repo-type dataset {benchmark.repository} --local-dir {place}"


def missing(benchmark: Benchmark, data: Path) -> list[Missing]:
    """What is not there of a benchmark's data, in words; empty where it can be asked."""
    folder = snapshot(benchmark, data)
    if not folder.is_dir():
        problems = [f"{benchmark.title} is not there"]
    elif not any(folder.rglob("*.parquet")):
        problems = [f"{benchmark.title}: the folder holds no Parquet file"]
    else:
        problems = [*_unfinished(folder), *_lacking(benchmark, folder)]
    return [Missing(benchmark.name, what, str(folder), fetch_line(benchmark, data)) for what in problems]


def require(wanted: Iterable[Benchmark], data: Path) -> None:
    """Raise InputError, with the lines to run, unless the data of all `wanted` are there."""
    problems = [problem for benchmark in wanted for problem in missing(benchmark, data)]
    if problems:
        lines = list(dict.fromkeys(problem.fix for problem in problems))
        what = "; ".join(dict.fromkeys(problem.what for problem in problems))
        raise InputError(what, where=problems[0].where, fix="\n         ".join(lines))


def split_files(folder: Path, configuration: str | None, split: str) -> list[Path]:
    """The Parquet files of a split, in order: as the data set's card lists them, else by the hub's way of naming."""
    paths = sorted(path for path in folder.rglob("*.parquet") if ".cache" not in path.relative_to(folder).parts)
    names = {path: PurePosixPath(path.relative_to(folder).as_posix()) for path in paths}
    patterns = _card_patterns(folder, configuration, split)
    if patterns:
        return [path for path, name in names.items() if any(fnmatch(str(name), pattern) for pattern in patterns)]
    return [path for path, name in names.items() if _named(name, configuration, split)]


def _named(name: PurePosixPath, configuration: str | None, split: str) -> bool:
    of_split = name.name == f"{split}.parquet" or name.name.startswith(f"{split}-")
    return of_split and (configuration is None or configuration in name.parent.parts)


def _card_patterns(folder: Path, configuration: str | None, split: str) -> list[str]:
    """File patterns that README.md's header gives for a split; none where it says nothing of it."""
    patterns: list[str] = []
    for entry in _card(folder).get("configs") or []:
        if configuration not in (None, entry.get("config_name")):
            continue
        for part in entry.get("data_files") or []:
            if isinstance(part, dict) and part.get("split") == split:
                path = part.get("path", [])
                patterns += [path] if isinstance(path, str) else path
    return patterns


def _card(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        read = parse_yaml(header[1], where=str(folder / "README.md")) if header else {}
    except (OSError, UnicodeDecodeError, ConfigError):
        return {}  # a card is for people: without one, files are found by name
    return read if isinstance(read, dict) else {}


def _unfinished(folder: Path) -> list[str]:
    return [f"{path.name} is half downloaded" for path in sorted(folder.rglob(f"*{HALF}"))]


def _lacking(benchmark: Benchmark, folder: Path) -> list[str]:
    """Shards that are not there or are cut off, of the questions and of the images beside them."""
    wanted = [benchmark.configuration, *([benchmark.images.configuration] if benchmark.images else [])]
    problems: list[str] = []
    for configuration in wanted:
        files = split_files(folder, configuration, benchmark.split)
        if not files:
            of = f" of '{configuration}'" if configuration else ""
            problems.append(f"{benchmark.title}: no file of split '{benchmark.split}'{of}")
        problems += [*_gaps(files), *(f"{path.name} is no whole Parquet file" for path in files if not _whole(path))]
    return problems


def _gaps(files: list[Path]) -> list[str]:
    """Names of the shards that others of the same set say there are."""
    seen: dict[tuple[Path, str, str], set[int]] = defaultdict(set)
    for path in files:
        if match := SHARD.fullmatch(path.name):
            seen[path.parent, match["split"], match["count"]].add(int(match["number"]))
    return [
        f"{folder.name}/{split}-{number:05d}-of-{count}.parquet is not there"
        for (folder, split, count), numbers in seen.items()
        for number in range(int(count))
        if number not in numbers
    ]


def _whole(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(len(PARQUET))
        file.seek(0, 2)
        if file.tell() < 3 * len(PARQUET):
            return False
        file.seek(-len(PARQUET), 2)
        return head == PARQUET == file.read()
