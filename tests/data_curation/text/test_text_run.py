"""Text through `megavlm curate run`: counted, traceable, restartable, and readable by the training side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from megavlm.megatron_mm.data.samples import read_conversation
from megavlm.platform.config import load_recipe
from megavlm.platform.config.tree import leaves
from megavlm.platform.shards import ShardReader

LEAK = "How many of the nineteen wooden boats that left the harbour at dawn came back before the storm?"
STAGES = {
    "text_ingest": {},
    "text_deduplicate": {},
    "text_decontaminate": {"folder": "BENCH", "benchmarks": ["gsm8k"]},
    "text_export": {"samples_per_shard": 4},
}


def question(i: int) -> str:
    return f"Question {i}: what is {i} times {i + 3}?"


@pytest.fixture
def recipe(tmp_path):
    """Three files of two sets: 30 rows, of which 2 are bad, 3 repeat others and 2 hold the benchmark's only item."""
    for folder in ("Orca Math", "GPTeacher", "bench"):
        (tmp_path / "text" / folder).mkdir(parents=True)
    orca = [{"question": question(i), "answer": f"It is {i * (i + 3)}."} for i in range(14)]
    orca += [{"question": question(2).upper(), "answer": "It is,  10!"}, {"question": "", "answer": "x"}]
    lines = [json.dumps(row) for row in orca]
    (tmp_path / "text/Orca Math/a.jsonl").write_text("\n".join([*lines[:8], "{broken"]))
    (tmp_path / "text/Orca Math/sub").mkdir()
    (tmp_path / "text/Orca Math/sub/b.jsonl").write_text("\n".join(lines[8:]))
    teacher = [{"instruction": question(50 + i), "input": "", "response": "Much."} for i in range(9)]
    teacher += [{"instruction": question(i), "input": "", "response": f"It is {i * (i + 3)}."} for i in (1, 9)]
    teacher += [{"instruction": "Tell me:", "input": LEAK.upper(), "response": "Four."}]
    teacher += [{"instruction": "Riddle", "input": "", "response": f"Here is one. {LEAK} Nobody knows."}]
    (tmp_path / "text/GPTeacher/all.json").write_text(json.dumps(teacher, indent=1))
    (tmp_path / "text/bench/gsm8k.jsonl").write_text(json.dumps({"question": LEAK, "answer": "4"}))
    sets = {"Orca Math": "orca_math", "GPTeacher": "gpteacher"}
    stages = {name: dict(options) for name, options in STAGES.items()}
    stages["text_decontaminate"]["folder"] = str(tmp_path / "text" / "bench")
    executor = {"name": "in_process", "workers": 0, "tasks_per_command": 1}
    source = {"kind": "text", "path": str(tmp_path / "text"), "sets": sets}
    return {"name": "test", "curation": {"source": source, "stages": stages, "executor": executor}}


def kept(result: dict) -> dict[str, tuple[int, int, dict[str, int]]]:
    return {line["stage"]: (line["in"], line["kept"], line["dropped"]) for line in result["funnel"]}


def test_every_row_is_exported_or_listed_with_its_reason(recipe, curate, tmp_path):
    counts = kept(curate(recipe))
    assert counts == {
        "text_ingest": (30, 28, {"empty_turn": 1, "invalid_json": 1}),
        "text_deduplicate": (28, 25, {"duplicate_text": 3}),
        "text_decontaminate": (25, 23, {"benchmark_leak": 2}),
        "text_export": (23, 23, {}),
    }
    rejected = pq.read_table(tmp_path / "run" / "rejected.parquet").to_pylist()
    assert {(row["shard"], row["key"][-8:], row["reason"]) for row in rejected} == {
        ("Orca-Math--a", "00000008", "invalid_json"),
        ("Orca-Math--sub-b", "00000007", "empty_turn"),
        ("Orca-Math--sub-b", "00000006", "duplicate_text"),
        ("GPTeacher--all", "00000009", "duplicate_text"),
        ("GPTeacher--all", "00000010", "duplicate_text"),
        ("GPTeacher--all", "00000011", "benchmark_leak"),
        ("GPTeacher--all", "00000012", "benchmark_leak"),
    }
    details = {row["key"]: row["detail"] for row in rejected}
    assert details["GPTeacher--all-00000009"] == "of Orca-Math--a-00000001"
    assert details["GPTeacher--all-00000012"].startswith('gsm8k item 0: "how many of the nineteen')
    statistics = json.loads((tmp_path / "run" / "export" / "statistics.json").read_text())["sets"]
    assert {name: (facts["rows"], facts["samples"], facts["turns"]) for name, facts in statistics.items()} == {
        "Orca Math": (17, 14, 28),
        "GPTeacher": (13, 9, 18),
    }
    assert statistics["GPTeacher"]["dropped"] == {"text_deduplicate/duplicate_text": 2} | {
        "text_decontaminate/benchmark_leak": 2
    }


def test_the_exported_shards_are_what_training_reads_and_name_their_rows(recipe, curate, tmp_path):
    curate(recipe)
    reader = ShardReader(str(tmp_path / "run" / "export"))
    assert len(reader) == 23 and len(reader.shards) == 2 + 2 + 3
    sample = reader.read("Orca-Math--sub-b-00000001")
    assert read_conversation(sample).messages == [
        {"role": "user", "content": question(9)},
        {"role": "assistant", "content": "It is 108."},
    ]
    origin = {"set": "Orca Math", "format": "orca_math", "shard": "Orca-Math--sub-b", "row": 1, "origin": ""}
    assert sample.json()["source"] == origin and sample.json()["id"] is None
    assert all(read_conversation(reader.read(number)) for number in range(len(reader)))


def test_another_benchmark_file_redoes_decontamination_and_what_follows(recipe, curate, tmp_path):
    curate(recipe)
    inodes = {path: path.stat().st_ino for path in sorted((tmp_path / "run").glob("text_*/*.parquet"))}
    extra = json.dumps({"question": question(3), "answer": "none"})
    with (tmp_path / "text/bench/gsm8k.jsonl").open("a") as file:
        file.write(f"\n{extra}\n")
    assert kept(curate(recipe))["text_decontaminate"][2] == {"benchmark_leak": 3}
    redone = {path.parent.name for path, inode in inodes.items() if path.stat().st_ino != inode}
    assert redone == {"text_decontaminate"}
    assert len(ShardReader(str(tmp_path / "run" / "export"))) == 22


def test_a_missing_benchmark_is_told_before_anything_is_read(recipe, curate, tmp_path, capsys):
    recipe["curation"]["stages"]["text_decontaminate"]["benchmarks"] = ["gsm8k", "mmlu"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    from megavlm.platform.cli import main

    assert main(["curate", "run", str(path), "--out", str(tmp_path / "run")]) != 0
    assert "no file of benchmark 'mmlu'" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("text_ingest/*.parquet"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sets": {"GPTeacher": "gpteach"}}, "did you mean 'gpteacher'?"),
        ({"sets": {"Nothing": "sharegpt"}}, "Nothing"),
        ({"sets": {}}, "no sets"),
        ({"sets": {"a.b": "sharegpt", "a-b": "sharegpt"}}, "two sets differ in signs alone"),
        ({"sets": {"../text": "sharegpt"}}, "leads out of its folder"),
    ],
)
def test_a_source_that_cannot_be_is_refused(recipe, change, said, tmp_path, capsys):
    from megavlm.platform.cli import main

    recipe["curation"]["source"] |= change
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["curate", "run", str(path), "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_text_stages_refuse_a_source_of_images(recipe, tmp_path, capsys):
    from megavlm.platform.cli import main

    recipe["curation"]["source"] = {"kind": "folder", "path": str(tmp_path / "images")}
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"png")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["curate", "run", str(path), "--out", str(tmp_path / "run")]) != 0
    assert "source kind 'folder' holds images, not text" in capsys.readouterr().err


def outputs(run: Path) -> dict[str, bytes]:
    names = ("text_*/*.parquet", "export/*.*", "export/provenance/*", "rejected.parquet")
    return {str(path.relative_to(run)): path.read_bytes() for name in names for path in sorted(run.glob(name))}


def test_killed_between_any_two_stages_it_ends_as_if_undisturbed(recipe, curate, tmp_path):
    curate(recipe, out="whole")
    path, run = tmp_path / "killed.yaml", tmp_path / "killed"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    command = [sys.executable, "-m", "megavlm.platform.cli", "curate", "run", str(path), "--out", str(run)]
    codes = []
    for awaited in ("text_ingest/*.parquet", "text_decontaminate/*.parquet", "export/*.tar"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 30
        while not list(run.glob(awaited)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        codes.append(process.returncode)
        assert list(run.glob(awaited))
    assert codes[0] == -signal.SIGKILL, "it was still at work"
    (run / "finished").unlink(missing_ok=True)
    curate(recipe, out="killed")
    assert outputs(run) == outputs(tmp_path / "whole")
    assert len(outputs(run)) == 9 + 3 * 7 + 3


def test_the_shipped_recipe_names_every_set_of_nvlm_and_says_where_its_values_are_from():
    recipe = load_recipe("text-sft-mini")
    assert set(recipe.section("curation").source.sets.values()) >= {
        *("sharegpt", "slim_orca", "evol_instruct", "gpteacher", "alpaca_gpt4", "ultra_interact"),
        *("orca_math", "math_instruct", "metamath", "glaive", "magicoder", "wizard_coder"),
    }
    keys = {key for key, _ in leaves(recipe.tree)}
    assert set(recipe.sources) <= keys
    assert all(f"curation.source.sets.{name}" in recipe.sources for name in recipe.section("curation").source.sets)
