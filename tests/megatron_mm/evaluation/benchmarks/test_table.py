"""The table against the installed libraries' own task files, which are read as text."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megavlm.megatron_mm.evaluation.benchmarks.protocols import find_protocol, list_protocols
from megavlm.megatron_mm.evaluation.benchmarks.table import benchmarks, find_benchmark, in_suite, is_benchmark
from megavlm.megatron_mm.evaluation.scorers import OURS, SCORERS
from megavlm.platform.errors import ConfigError

VL = "mmmu mathvista ocrbench ai2d chartqa docvqa infovqa textvqa vqav2 gqa vizwiz realworldqa mme mmbench seed pope"
VL += " scienceqa"
PAGE = Path(__file__).parents[4] / "docs" / "evaluation.md"
LANGUAGE = "mmlu gsm8k math humaneval"
PACKAGES = {"lm-eval": "lm_eval", "lmms-eval": "lmms_eval"}


class TaskLoader(yaml.CSafeLoader):
    """Reads `!function x.y` as the text x.y."""


TaskLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def read(path: Path) -> dict[str, Any]:
    own = yaml.load(path.read_text(), Loader=TaskLoader)
    included = own.pop("include", None)
    return {**(read(path.parent / included) if included else {}), **own}


def tasks_of(name: str) -> list[dict[str, Any]]:
    """The library's settings of every task that a benchmark runs."""
    benchmark = find_benchmark(name)
    found = importlib.util.find_spec(PACKAGES[benchmark.harness])
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{benchmark.harness} is not installed")
    folder = Path(found.submodule_search_locations[0]) / "tasks" / benchmark.folder
    if benchmark.harness == "lmms-eval":
        return [read(folder / f"{benchmark.task}.yaml")]  # where the harness looks for it
    files = [read(path) for path in sorted(folder.glob("*.yaml"))]
    groups = {each["group"]: each["task"] for each in files if "group" in each}
    wanted, open_names = [], [benchmark.task]
    while open_names:
        task = open_names.pop()
        if task in groups:
            open_names += groups[task]
        else:
            wanted += [each for each in files if task in (each.get("task"), each.get("tag"))]
    return wanted


def test_the_table_holds_what_is_promised():
    assert [row.name for row in in_suite("vl")] == VL.split()
    assert [row.name for row in in_suite("language")] == LANGUAGE.split()
    assert [row.name for row in in_suite("pope")] == ["pope"]
    assert is_benchmark("vl") and is_benchmark("mmlu") and not is_benchmark("text")


@pytest.mark.parametrize("name", [*LANGUAGE.split(), *VL.split()])
def test_a_row_says_what_the_library_says(name):
    benchmark, tasks = benchmarks()[name], tasks_of(name)
    assert tasks
    for task in tasks:
        assert task["dataset_path"] == benchmark.repository
        assert task["test_split"] == benchmark.split
        assert task["output_type"] in ("generate_until", "multiple_choice")
        if benchmark.configuration or benchmark.harness == "lmms-eval":
            assert task.get("dataset_name") == benchmark.configuration
        metrics = {str(metric["metric"]).rpartition(".")[2]: metric for metric in task["metric_list"]}
        assert {benchmark.metric.key, *benchmark.metric.also} <= set(metrics)
        assert metrics[benchmark.metric.key]["higher_is_better"]
        filters = {each["name"] for each in task.get("filter_list", [])}
        assert benchmark.metric.filter is None or benchmark.metric.filter in filters
        assert benchmark.metric.scorer in SCORERS


@pytest.mark.parametrize("name", VL.split())
def test_eagle_asks_as_lmms_evals_tasks_do(name):
    """Eagle was evaluated with a copy of them: lengths and texts are theirs wherever we say so."""
    asked, [task] = find_protocol("eagle").of(benchmarks()[name]), tasks_of(name)
    length = (task.get("generation_kwargs") or {}).get("max_new_tokens")
    if asked.sources["max_new_tokens"] == "lmms-eval's task":
        assert asked.max_new_tokens == length
    elif "task says none" in asked.sources["max_new_tokens"]:
        assert length is None
    own = (task.get("lmms_eval_specific_kwargs") or {}).get("default", {})
    after = own.get("post_prompt", own.get("multiple_choice_prompt"))
    if asked.sources["after"] == "script" and after is not None:
        assert (asked.after or "").strip() == after.strip()


def test_mmlu_has_its_57_subjects_and_math_its_7():
    assert len(tasks_of("mmlu")) == 57
    assert len(tasks_of("math")) == 7


def test_hidden_answers_and_judges_are_told():
    for name in ("docvqa", "infovqa", "vqav2", "vizwiz", "mmmu", "mmbench"):
        assert any("submit" in text for text in benchmarks()[name].lacks)
    for name in ("mathvista", "mmbench"):
        assert any("GPT" in text for text in benchmarks()[name].lacks)
    ours = {name for name, row in benchmarks().items() if row.metric.scorer in OURS}
    assert ours == {"mathvista", "ocrbench", "vqav2"}


def test_the_page_has_a_row_for_every_benchmark_protocol_and_scorer_of_ours():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert set(benchmarks()) | set(list_protocols()) | OURS <= set(rows)
    for name, row in benchmarks().items():
        assert f"| `{name}` | {row.harness} `{row.task}` | `{row.repository}`" in PAGE.read_text()


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(ConfigError) as told:
        in_suite("docvqu")
    assert "docvqa" in str(told.value.fix)
    with pytest.raises(ConfigError):
        find_benchmark("vl")
