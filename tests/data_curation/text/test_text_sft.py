"""`text-sft` from end to end: twelve published layouts, every benchmark of the evaluation's table, one account."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.text.benchmarks import COLUMNS
from megavlm.megatron_mm.data.samples import read_conversation
from megavlm.megatron_mm.evaluation.benchmarks.table import benchmarks
from megavlm.platform.config import load_recipe
from megavlm.platform.shards import ShardReader

CLEAN = 4  # rows of each set that hold nothing of a benchmark
PICTURE = b"\x89PNG" + bytes(5000)
SHOWN = [name for name, of in benchmarks().items() if of.group == "vl"]

# Set -> a row of its published layout that asks and answers this.
ROWS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "ShareGPT": lambda q, a: {"id": "x", "conversations": [_said("human", q), _said("gpt", a)]},
    "SlimOrca": lambda q, a: {
        "conversations": [_said("system", "You help."), _said("human", q), _said("gpt", a) | {"weight": 1.0}]
    },
    "EvolInstruct": lambda q, a: {"instruction": q, "output": a},
    "GPTeacher": lambda q, a: {"instruction": q, "input": "", "response": a},
    "AlpacaGPT4": lambda q, a: {"instruction": q, "input": "", "output": a, "text": f"Below is {q} {a}"},
    "UltraInteract": lambda q, a: {"task": "Math", "dataset": "own", "instruction": q, "response": a, "id": "1"},
    "OrcaMath": lambda q, a: {"question": q, "answer": a},
    "MathInstruct": lambda q, a: {"source": "data/CoT/x.json", "instruction": q, "output": a},
    "MetaMath": lambda q, a: {"type": "GSM_Rephrased", "query": q, "original_question": "o", "response": a},
    "GlaiveCodeAssistant": lambda q, a: {"question": q, "answer": a},
    "Magicoder": lambda q, a: {"lang": "python", "raw_index": 1, "seed": "s", "problem": q, "solution": a},
    "WizardCoder": lambda q, a: {"instruction": q, "output": a},
}


def _said(who: str, text: str) -> dict[str, Any]:
    return {"from": who, "value": text}


def item(name: str) -> str:
    """What only this benchmark says: more than thirteen words."""
    return f"On {name} island the lighthouse keeper counted seven grey gulls before the third {name} ship came home"


def write_benchmarks(folder: Path) -> None:
    """One item each, in the last of its columns that are read; questions about pictures beside their pictures."""
    folder.mkdir()
    for name in benchmarks():
        *others, last = COLUMNS[name]
        text = [item(name), "another"] if name == "mmlu" else item(name)
        row = dict.fromkeys(others, f"Short {name}") | {last: text}
        rows = [row | ({"image": {"bytes": PICTURE, "path": None}} if name in SHOWN else {})]
        place = folder / name / "test-00000-of-00001.parquet" if name in SHOWN else folder / f"{name}.parquet"
        place = folder / name / "main" / "test.parquet" if name == "gsm8k" else place  # as a snapshot has it
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), place)


@pytest.fixture
def made(curate: Callable[..., dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """A run over twelve sets; set k holds the items of benchmarks k and k + 12, one asked and one answered."""
    write_benchmarks(tmp_path / "benchmarks")
    names = list(benchmarks())
    for number, (text_set, row) in enumerate(ROWS.items()):
        (tmp_path / "text" / text_set).mkdir(parents=True)
        rows = [row(f"{text_set} asks {k}?", f"It is {k} of {text_set}.") for k in range(CLEAN)]
        leaks = names[number :: len(ROWS)]
        rows += [
            row(item(name).upper(), "No.") if k else row("Tell.", f"{item(name)}!") for k, name in enumerate(leaks)
        ]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "text" / text_set / "train.jsonl").write_text(text)
    source = {"path": str(tmp_path / "text"), "about": {"SlimOrca": {"licence": "MIT"}}}
    stages = {"text_refine": None, "text_decontaminate": {"folder": str(tmp_path / "benchmarks")}}
    executor = {"name": "in_process", "workers": 0}
    curation = {"source": source, "stages": stages, "executor": executor}
    return curate({"base": "text-sft", "name": "test", "curation": curation})


def test_twelve_layouts_become_one_set_without_any_benchmarks_items(made: dict[str, Any], tmp_path: Path) -> None:
    funnel = {line["stage"]: (line["in"], line["kept"], line["dropped"]) for line in made["funnel"]}
    rows, leaks = len(ROWS) * CLEAN + len(benchmarks()), len(benchmarks())
    assert funnel["text_ingest"] == (rows, rows, {}) and leaks == 21
    assert funnel["text_decontaminate"] == (rows, rows - leaks, {"benchmark_leak": leaks})
    reader = ShardReader(str(tmp_path / "run" / "export"))
    told = [
        (reader.read(k).json()["source"]["set"], read_conversation(reader.read(k)).messages) for k in range(len(reader))
    ]
    asked = {(name, messages[-2]["content"], messages[-1]["content"]) for name, messages in told}
    wanted = {(name, f"{name} asks {k}?", f"It is {k} of {name}.") for name in ROWS for k in range(CLEAN)}
    assert asked == wanted and len(told) == len(wanted)


def test_the_account_names_source_licence_and_counts_of_each_set(made: dict[str, Any], tmp_path: Path) -> None:
    sets = json.loads((tmp_path / "run" / "export" / "statistics.json").read_text())["sets"]
    assert list(sets) == list(ROWS)
    assert all(facts["samples"] == CLEAN for facts in sets.values())
    leaked = [facts["dropped"]["text_decontaminate/benchmark_leak"] for facts in sets.values()]
    assert leaked == [2] * 9 + [1] * 3 and [facts["rows"] for facts in sets.values()] == [CLEAN + k for k in leaked]
    assert (sets["SlimOrca"]["format"], sets["SlimOrca"]["licence"]) == ("slim_orca", "MIT")
    assert sets["SlimOrca"]["where"] == "https://huggingface.co/datasets/Open-Orca/SlimOrca"
    assert sets["ShareGPT"]["licence"] == "unknown" and sets["ShareGPT"]["where"] is None


def test_the_shipped_recipes_read_every_benchmark_and_every_set() -> None:
    full, mini = (load_recipe(name).section("curation") for name in ("text-sft", "text-sft-mini"))
    assert set(full.stages["text_decontaminate"].benchmarks) == benchmarks().keys() <= COLUMNS.keys()
    language = {name for name, of in benchmarks().items() if of.group == "language"}
    assert set(mini.stages["text_decontaminate"].benchmarks) == language
    order = ["text_ingest", "text_deduplicate", "text_refine", "text_decontaminate", "text_export"]
    assert list(full.stages.root) == order
    assert list(mini.stages.root) == [name for name in order if name != "text_refine"]
    assert full.source.sets == mini.source.sets and list(full.source.sets) == list(ROWS)
