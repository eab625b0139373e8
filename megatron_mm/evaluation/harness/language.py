"""Text benchmarks through lm-eval's own tasks, prompts and metrics, over any engine: what was said to every item."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megavlm.platform import sandbox
from megavlm.platform.errors import ConfigError

from ..benchmarks.present import require
from ..benchmarks.protocols import Asked, Protocol
from ..benchmarks.table import Benchmark, Metric
from ..engines.base import Engine
from ..predictions import Prediction
from .outcomes import Problems, Sample, by_metric, by_running
from .tasks import Tasks, library_folder, load_tasks

SEED = 1234  # lm-eval's own, for the examples that stand before a question


def evaluate_language(
    engine: Engine,
    benchmark: Benchmark,
    data: Path,
    protocol: Protocol,
    limit: int | None = None,
    alive: Callable[[], object] = lambda: None,
) -> list[Prediction]:
    """Every item of a benchmark of the table in lm-eval's order, or `limit` of them, as many of each task as can be.

    Texts are asked as lm-eval has them, without the model's template, unless the protocol's options say
    `template: true`. Ids are TASK/NUMBER; kinds are the tasks' titles. `alive` is called between batches. Raises
    InputError with the line to run for missing data, ConfigError for a protocol that lm-eval's task cannot follow.
    """
    require([benchmark], data)
    asked = protocol.of(benchmark)
    with tempfile.TemporaryDirectory(prefix="megavlm-") as cache:
        tasks = load_tasks(library_folder(benchmark.folder), benchmark.tasks, data, Path(cache))
        return evaluate_tasks(engine, tasks, asked, benchmark.metric, limit, alive)


def evaluate_folder(
    engine: Engine,
    folder: Path,
    names: Sequence[str],
    data: Path | None = None,
    asked: Asked | None = None,
    limit: int | None = None,
    alive: Callable[[], object] = lambda: None,
) -> list[Prediction]:
    """The same of one's own tasks: `folder` holds them as YAML in lm-eval's format.

    An item is judged by the first metric of its task. Tasks with `unsafe_code: true` have programs for answers, which
    run in the sandbox: a column `prompt` is what they go on from, `entry_point` the function, the target their tests.
    """
    with tempfile.TemporaryDirectory(prefix="megavlm-") as cache:
        return evaluate_tasks(engine, load_tasks(folder, names, data, Path(cache)), asked, None, limit, alive)


def evaluate_tasks(
    engine: Engine,
    tasks: Tasks,
    asked: Asked | None,
    metric: Metric | None,
    limit: int | None = None,
    alive: Callable[[], object] = lambda: None,
) -> list[Prediction]:
    """What `evaluate_language` does of tasks that are built; without `asked` as they say themselves."""
    if tasks.code:
        sandbox.require()  # before anything is generated
    samples, problems = run_tasks(engine, tasks, asked, limit, alive)
    found: list[Prediction] = []
    for name, task in tasks.tasks.items():
        if name not in samples:
            continue  # none of it is within the limit
        if name in tasks.code:
            found += by_running(name, task, samples[name], problems, alive)
        else:
            judged = _one_filter(samples[name], metric.filter if metric else None, name)
            found += by_metric(name, task, judged, metric, problems)
    return found


def run_tasks(
    engine: Engine, tasks: Tasks, asked: Asked | None, limit: int | None, alive: Callable[[], object]
) -> tuple[dict[str, list[Sample]], Problems]:
    """lm-eval's samples by task, and the reasons of those that could not be asked, by task and number."""
    from lm_eval.evaluator import evaluate

    from .lm import EngineLM

    template = bool(asked and asked.options.get("template", False))
    for name, task in tasks.tasks.items():
        _settle(name, task, asked)
    taken = shares({name: len(task.eval_docs) for name, task in tasks.tasks.items()}, limit)
    model = EngineLM(engine, template, alive)
    with _fixed_seeds():
        told = evaluate(
            model,
            {"tasks": {name: tasks.tasks[name] for name, count in taken.items() if count}, "groups": {}},
            samples={name: list(range(count)) for name, count in taken.items() if count},
            bootstrap_iters=0,
            log_samples=True,
            system_instruction=asked.system if asked else None,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
        )
    return told["samples"], model.problems


def shares(sizes: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """How many of the first items of each task are asked: `limit` in all, as equally many as can be."""
    if limit is None:
        return dict(sizes)
    turns = sorted((turn, place, name) for place, name in enumerate(sizes) for turn in range(min(sizes[name], limit)))
    counts = Counter(name for _, _, name in turns[:limit])
    return {name: counts[name] for name in sizes}


def _settle(name: str, task: Any, asked: Asked | None) -> None:
    """Let a task follow a protocol."""
    task.set_fewshot_seed(seed=SEED)
    if asked is None:
        task.set_config(key="num_fewshot", value=task.get_config("num_fewshot") or 0)
        return
    if asked.before or asked.after:
        fix = "leave before and after null: text benchmarks have lm-eval's prompts"
        raise ConfigError("a protocol changes the question's text", where=f"benchmarks.{name}", fix=fix)
    task.set_config(key="num_fewshot", value=asked.shots)
    if task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": asked.max_new_tokens}, update=True)


@contextlib.contextmanager
def _fixed_seeds() -> Iterator[None]:
    """Inside, Python's and numpy's draws are always the same; afterwards they go on as if nothing had been."""
    before, arrays = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(arrays)


def _one_filter(samples: Sequence[Sample], wanted: str | None, name: str) -> list[Sample]:
    """A task tells each item once for each of its answer filters: those of one, the first unless it is named."""
    by_filter: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_filter[sample["filter"]].append(sample)
    if wanted is not None and wanted not in by_filter:
        raise ConfigError(f"task {name} has no filter {wanted}", fix=f"it has: {', '.join(by_filter)}")
    return by_filter[wanted or next(iter(by_filter))]
