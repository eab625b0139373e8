"""lm-eval's tasks, built over data that lie here: nothing is downloaded, and no task runs code that a model wrote.

Tasks are lm-eval's own, or YAML files of a folder in its format (its docs/new_task_guide.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.errors import ConfigError, InputError, MissingPackage, did_you_mean
from megavlm.platform.storage import safe_join

FILES = frozenset(
    {"json", "csv", "parquet", "text", "arrow"}
)  # what `datasets` reads files as; "pandas" unpickles them
# Of a task whose answers are programs: what would run them, or cut them out for that. Others may be no functions.
JUDGING = ("metric_list", "filter_list", "process_results")
UNJUDGED = [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}]


@dataclasses.dataclass(frozen=True)
class Tasks:
    """lm-eval's task objects by name, those of a group in its order; `code`: names whose answers are programs."""

    tasks: dict[str, Any]
    code: frozenset[str]


def library_folder(name: str) -> Path:
    """A folder of lm-eval's own tasks; raises MissingPackage without lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise MissingPackage("benchmarks need lm-eval", fix='pip install "megavlm[eval]"')
    return Path(spec.origin).parent / "tasks" / name


def load_tasks(folder: Path, names: Sequence[str], data: Path | None, cache: Path) -> Tasks:
    """The tasks of these names, or of groups or tags of these names, that YAML files under `folder` define.

    A data set of the hub, ORG/NAME, is read from `data`/ORG/NAME; what `datasets` makes of it goes to `cache`. Raises
    ConfigError for an unknown name and a task that cannot run here, InputError with the line to run for missing data.
    """
    library_folder("")  # says what is missing
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    index = TaskManager(include_defaults=False, include_path=str(folder)).task_index
    found: dict[str, Any] = {}
    code = set()
    for entry in (leaf for name in names for leaf in _leaves(index, name, folder)):
        settings, is_code = _settings(entry)
        _point_at(settings, data, cache, entry.yaml_path)
        try:
            with _offline():
                found[entry.name] = ConfigurableTask(config=settings)
        except Exception as error:  # whatever lm-eval, datasets and jinja make of a task's settings and rows
            what = f"task {entry.name} cannot be built: {error!r}"
            raise InputError(what, where=str(entry.yaml_path), fix="mend the task, or its data") from error
        code |= {entry.name} if is_code else set()
    return Tasks(found, frozenset(code))


def _leaves(index: Mapping[str, Any], name: str, folder: Path) -> Iterator[Any]:
    """The tasks that a name stands for, in order."""
    if name not in index:
        raise ConfigError(f"no task '{name}'", where=str(folder), fix=did_you_mean(name, index))
    entry = index[name]
    kind = entry.kind.name
    if kind == "TASK":
        yield entry
    elif kind in ("GROUP", "TAG"):
        for child in entry.cfg["task"] if kind == "GROUP" else sorted(entry.tags):
            if not isinstance(child, str):
                what = f"group '{name}' changes settings of its tasks"
                raise ConfigError(what, where=str(entry.yaml_path), fix="write each task in a file of its own")
            yield from _leaves(index, child, folder)
    else:
        raise ConfigError(f"task '{name}' is Python code", where=str(entry.yaml_path), fix="write it as YAML")


def _settings(entry: Any) -> tuple[dict[str, Any], bool]:
    """A task's settings, and whether its answers are programs.

    Such a task's functions are not even imported: lm-eval's own run code in this process as they are.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    plain = load_yaml(entry.yaml_path, resolve_func=False)
    if not plain.get("unsafe_code"):
        settings = load_yaml(entry.yaml_path, resolve_func=True)
        _check_metrics(settings, entry.yaml_path)
    else:
        settings = {key: value for key, value in plain.items() if key not in JUDGING}
        for key, value in settings.items():
            if _names_a_function(value):
                fix = "write it as text: beside unsafe_code no function of the task is called"
                raise ConfigError(f"{key} is a function", where=str(entry.yaml_path), fix=fix)
        settings |= {"metric_list": UNJUDGED, "unsafe_code": False}
    for key in ("tag", "group", "task_list"):
        settings.pop(key, None)
    return settings, bool(plain.get("unsafe_code"))


def _check_metrics(settings: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError for a metric that lm-eval would fetch and run as code from the hub."""
    import lm_eval.api.metrics  # noqa: F401 - it registers them
    from lm_eval.api.registry import METRIC_REGISTRY

    own = settings.get("process_results") is not None
    for metric in settings.get("metric_list") or []:
        name = metric.get("metric")
        if metric.get("hf_evaluate") or not (own or callable(name) or name in METRIC_REGISTRY):
            what, fix = (
                f"metric {name} is none of lm-eval's own",
                "choose one of its own, or unsafe_code: true for code",
            )
            raise ConfigError(what, where=str(path), fix=fix)


def _names_a_function(value: Any) -> bool:
    """Whether there is a `!function` in it, as lm-eval's loader writes one that it does not resolve."""
    if isinstance(value, dict | list):
        return any(map(_names_a_function, value.values() if isinstance(value, dict) else value))
    if not isinstance(value, str) or not value.startswith("/"):
        return False
    return Path(f"{value.rpartition('.')[0]}.py").is_file()


def _point_at(settings: dict[str, Any], data: Path | None, cache: Path, path: Path) -> None:
    """Let the task read what lies here."""
    wanted = settings.get("dataset_path")
    options = settings.get("dataset_kwargs") or {}
    settings["dataset_kwargs"] = {**options, "cache_dir": str(cache)}
    if wanted is None and settings.get("custom_dataset"):
        return  # a function of the folder
    if wanted in FILES:
        if "://" in str(options.get("data_files")):
            raise ConfigError("data_files is an address", where=str(path), fix="fetch the file, and give its path")
    elif not Path(str(wanted)).is_absolute():
        settings["dataset_path"] = str(_snapshot(str(wanted), data, path))


def _snapshot(wanted: str, data: Path | None, path: Path) -> Path:
    """Where a data set of the hub lies."""
    if data is None:
        raise ConfigError(f"task {path.stem} reads {wanted}", where=str(path), fix="give its folder with --data")
    place = Path(safe_join(str(data), wanted))
    if not place.is_dir():
        fix = f"hf download --repo-type dataset {shlex.quote(wanted)} --local-dir {shlex.quote(str(place))}"
        raise InputError(f"{wanted} is not there", where=str(place), fix=fix)
    return place


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Inside, `datasets` tells nobody what it loads; it would count loads of files, too."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
