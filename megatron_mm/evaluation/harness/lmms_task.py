"""An lmms-eval task over a local snapshot, asked as a protocol says: its prompts, filters and scores are its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megavlm.platform.errors import ConfigError, InputError, did_you_mean

from ..benchmarks.present import fetch_line, snapshot, split_files
from ..benchmarks.protocols import Asked
from ..benchmarks.table import Benchmark, Columns, Images
from . import lmms_library
from .lmms_rows import Rows

Row = dict[str, Any]
AFTER = ("post_prompt", "multiple_choice_prompt")  # what tasks call the text after a question
HINT = "Hint: "


def load_task(benchmark: Benchmark, data: Path, asked: Asked) -> Any:
    """The task (a ConfigurableTask). Raises ConfigError for a text it has no place for, InputError for other data."""
    config = task_config(benchmark, asked)
    folder = snapshot(benchmark, data)
    if benchmark.images:
        config["process_docs"] = None  # it would fetch the images from the hub
        config["doc_to_visual"] = _beside(
            benchmark.images, split_files(folder, benchmark.images.configuration, benchmark.split)
        )
    files = split_files(folder, benchmark.configuration, benchmark.split)
    try:
        return _local_task()(config, files)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        what = f"{benchmark.title}: these are not the columns that lmms-eval's task reads ({error!r})"
        raise InputError(what, where=str(folder), fix=fetch_line(benchmark, data)) from None


def task_config(benchmark: Benchmark, asked: Asked) -> dict[str, Any]:
    """The library's settings of the task, with the protocol's texts in place of its own."""
    path = lmms_library.tasks_folder() / benchmark.folder / f"{benchmark.task}.yaml"
    read = lmms_library.load("utils").load_yaml_config
    if benchmark.columns:
        return _from_columns(read(str(path), mode="simple"), benchmark.columns, asked)
    config: dict[str, Any] = read(str(path), mode="full")
    own = (config.pop("lmms_eval_specific_kwargs", None) or {}).get("default")
    texts = _texts(benchmark, asked, own or {})
    if own is not None:
        config["lmms_eval_specific_kwargs"] = {"default": own | texts}
    return config


def _texts(benchmark: Benchmark, asked: Asked, own: dict[str, Any]) -> dict[str, Any]:
    """The protocol's texts under the task's names for them."""
    after = next((key for key in AFTER if key in own), AFTER[0])
    texts = {"pre_prompt": asked.before or None, after: asked.after, "open_ended_prompt": asked.after_open}
    given = {key: text for key, text in texts.items() if text is not None} | asked.options
    for key in given.keys() - own.keys():
        where = f"{benchmark.name}: lmms-eval's task {benchmark.task}"
        raise ConfigError(
            f"it has no place for {key} {given[key]!r}",
            where=where,
            fix=did_you_mean(key, own) if own else "leave it to the task: null",
        )
    return given


def _from_columns(config: dict[str, Any], columns: Columns, asked: Asked) -> dict[str, Any]:
    """A task whose rows hold all that is asked; its value is made by a scorer of ours."""

    def text(row: Row) -> str:
        question = str(row[columns.question])
        question = question if asked.options.get("hint", True) else question.replace(HINT, "")
        return f"{asked.before or ''}{question}{asked.after or ''}"

    kept = {key: config[key] for key in ("task", "dataset_path", "test_split", "output_type", "doc_to_target")}
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    return kept | {
        "doc_to_text": text,
        "doc_to_visual": lambda row: [row[columns.image].convert("RGB")],
        "metric_list": [metric],
    }


def _beside(images: Images, files: list[Path]) -> Callable[[Row], list[Any]]:
    """A question's image, from the configuration that holds the images."""
    rows = Rows(files, images=True)
    place = {name: number for number, name in enumerate(Rows(files, images=False).column(images.column))}
    return lambda row: [rows[place[row[images.key]]]["image"].convert("RGB")]


@functools.cache
def _local_task() -> Any:
    """lmms-eval's task class, over our rows. Made on use: the module loads torch."""
    base = lmms_library.load("api.task").ConfigurableTask

    class LocalTask(base):  # type: ignore[misc, valid-type]
        """Reads the files it is given, and never tries again: what fails to score once will do so again."""

        process_results = base.process_results.__wrapped__

        def __init__(self, config: dict[str, Any], files: list[Path]) -> None:
            self._files = files
            super().__init__(config=config)

        def download(self, dataset_kwargs: object = None) -> None:
            split = self.config.test_split
            self.dataset = {split: Rows(self._files, images=True)}
            self.dataset_no_image = {split: Rows(self._files, images=False)}

        def test_docs(self) -> Rows:
            """The rows without images: those are opened one item at a time."""
            return self.dataset_no_image[self.config.test_split]

    return LocalTask
