"""What is missing of a benchmark's data, told without a network; and what an evaluation would ask."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.megatron_mm.evaluation.benchmarks.listing import readable, rows
from megavlm.megatron_mm.evaluation.benchmarks.present import missing, require, split_files
from megavlm.megatron_mm.evaluation.benchmarks.table import benchmarks, find_benchmark
from megavlm.platform.errors import ConfigError, InputError

WHAT = ["benchmark", "title", "harness", "task", "data", "configuration", "split"]
HOW = ["system", "prompt", "prompt_open", "shots", "decoding", "max_new_tokens", "options"]
JUDGED = ["metric", "metric_says", "scorer", "sources", "lacks", "missing", "fix", "protocol", "max_tiles"]


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"question": ["why?"]}), path)
    return path


def told(name, data):
    return [problem.what for problem in missing(find_benchmark(name), data)]


@pytest.mark.parametrize("name", list(benchmarks()))
def test_each_benchmark_that_is_not_there_is_told_with_a_line_that_runs(name, tmp_path):
    data = tmp_path / "my data"
    [problem] = missing(find_benchmark(name), data)
    words = shlex.split(problem.fix)
    repository = benchmarks()[name].repository
    assert words[:5] == ["hf", "download", "--repo-type", "dataset", repository]
    assert words[5:] == ["--local-dir", f"{data}/{repository}"]
    assert problem.where == f"{data}/{repository}"


def test_an_empty_folder_and_a_folder_without_the_split(tmp_path):
    folder = tmp_path / "lmms-lab-encoder" / "DocVQA"
    folder.mkdir(parents=True)
    assert told("docvqa", tmp_path) == ["DocVQA: the folder holds no Parquet file"]
    put(folder / "InfographicVQA" / "validation-00000-of-00001.parquet")
    put(folder / "DocVQA" / "test-00000-of-00001.parquet")
    assert told("docvqa", tmp_path) == ["DocVQA: no file of split 'validation' of 'DocVQA'"]
    assert told("infovqa", tmp_path) == []


def test_half_a_download_is_told(tmp_path):
    folder = tmp_path / "lmms-lab-encoder" / "DocVQA" / "DocVQA"
    for number in (0, 2):
        put(folder / f"validation-{number:05d}-of-00003.parquet")
    assert told("docvqa", tmp_path) == ["DocVQA/validation-00001-of-00003.parquet is not there"]
    cut = put(folder / "validation-00001-of-00003.parquet")
    assert told("docvqa", tmp_path) == []
    cut.write_bytes(cut.read_bytes()[:-40])
    assert told("docvqa", tmp_path) == ["validation-00001-of-00003.parquet is no whole Parquet file"]
    put(cut)
    under_way = tmp_path / "lmms-lab-encoder" / "DocVQA" / ".cache" / "huggingface" / "download" / "x.incomplete"
    under_way.parent.mkdir(parents=True)
    under_way.write_bytes(b"")
    assert told("docvqa", tmp_path) == ["x.incomplete is half downloaded"]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.data())
def test_whichever_shards_lack_are_named(count, draw):
    there = draw.draw(st.sets(st.integers(0, count - 1), min_size=1))
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        folder = data / "lmms-lab-encoder" / "POPE" / "data"
        tail = draw.draw(st.sampled_from(["", "-0123456789abcdef"]))
        for number in there:
            put(folder / f"test-{number:05d}-of-{count:05d}{tail}.parquet")
        lacking = [f"data/test-{number:05d}-of-{count:05d}.parquet" for number in range(count) if number not in there]
        assert told("pope", data) == [f"{file} is not there" for file in lacking]
        assert len(split_files(data / "lmms-lab-encoder" / "POPE", None, "test")) == len(there)


def test_the_cards_patterns_are_followed_before_names(tmp_path):
    header = (
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: dev\n    path: english/part-*\n---\n# MMBench\n"
    )
    put(tmp_path / "english" / "part-0.parquet")
    put(tmp_path / "en" / "dev-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text(header)
    assert [path.name for path in split_files(tmp_path, "en", "dev")] == ["part-0.parquet"]
    (tmp_path / "README.md").write_text("---\n: not [yaml\n---\n")
    assert [path.parent.name for path in split_files(tmp_path, "en", "dev")] == ["en"]


def test_gqa_needs_its_images_too(tmp_path):
    folder = tmp_path / "lmms-lab-encoder" / "GQA"
    put(folder / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet")
    assert told("gqa", tmp_path) == ["GQA: no file of split 'testdev' of 'testdev_balanced_images'"]


def test_require_names_every_line_once(tmp_path):
    with pytest.raises(InputError) as error:
        require([find_benchmark("docvqa"), find_benchmark("infovqa"), find_benchmark("pope")], tmp_path)
    lines = str(error.value.fix).splitlines()
    assert [line.split()[4] for line in lines] == ["lmms-lab-encoder/DocVQA", "lmms-lab-encoder/POPE"]


@pytest.mark.parametrize("protocol", ["nvlm", "eagle", "llava"])
@pytest.mark.parametrize("suite", ["vl", "language"])
def test_the_listing_names_data_prompt_metric_and_what_is_missing(suite, protocol, tmp_path):
    put(tmp_path / "lmms-lab-encoder" / "POPE" / "data" / "test-00000-of-00001.parquet")
    listed = rows(suite, protocol, tmp_path)
    assert [row["benchmark"] for row in listed] == [name for name, row in benchmarks().items() if row.group == suite]
    assert all(list(row) == WHAT + HOW + JUDGED for row in listed)
    assert json.loads(json.dumps(listed)) == listed
    assert [row["benchmark"] for row in listed if not row["missing"]] == (["pope"] if suite == "vl" else [])
    text = readable(listed)
    for row in listed:
        assert all(part in text for part in (repr(row["prompt"]), row["data"], f"{row['metric']} by {row['scorer']}"))
        assert (row["fix"] is None) == (not row["missing"])
        assert row["fix"] is None or row["fix"] in text


def test_the_prompt_reads_as_it_will_be_asked():
    [row] = rows("chartqa", "nvlm", None)
    assert row["prompt"] == "<image>\n{question}\nAnswer the question using a single word or phrase."
    assert row["system"] == "Follow the user's instruction and answer questions."
    assert row["missing"] == ["no folder of benchmarks is named"] and row["max_tiles"] == 6
    [row] = rows("seed", "llava", None)
    assert row["prompt"].endswith("(as the library's task has it)") and row["system"] is None
    [row] = rows("mmmu", "nvlm", None)
    assert row["prompt_open"] == "<image>\n{question}\n\nAnswer the question using a single word or phrase."
    assert row["prompt_open"] in readable([row]).replace("\\n", "\n")
    assert "options ocr True" in readable(rows("textvqa", "eagle", None))
    assert rows("vqav2", "nvlm", None)[0]["scorer"] == "vqa" and rows("pope", "nvlm", None)[0]["scorer"] == "lmms-eval"


def test_unknown_names_are_refused():
    for suite, protocol in (("docs", "nvlm"), ("vl", "nvml")):
        with pytest.raises(ConfigError):
            rows(suite, protocol, None)
