"""Benchmarks' files: found by name, read by column, and refused when they protect from nothing."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.text.benchmarks import columns_of, find_files, read_items
from megavlm.platform.errors import InputError


def test_files_are_found_by_name_single_and_in_a_folder(tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "a b", "answer": "c"}\n')
    (tmp_path / "mmlu").mkdir()
    for name in ("law", "art"):
        rows = [{"question": f"{name}?", "choices": ["x", "y"], "answer": 1}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mmlu" / f"{name}.parquet")
    gsm, mmlu = (find_files(str(tmp_path), name) for name in ("gsm8k", "mmlu"))
    assert list(read_items(gsm, columns_of("gsm8k", {}))) == [(0, ["a b", "c"])]
    assert list(read_items(mmlu, columns_of("mmlu", {}))) == [(0, ["art?", "x\ny"]), (1, ["law?", "x\ny"])]


def test_a_benchmark_of_ones_own_names_its_columns(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps([{"frage": "x"}]))
    with pytest.raises(InputError, match="unknown benchmark 'mine'"):
        columns_of("mine", {})
    assert list(read_items(find_files(str(tmp_path), "mine"), columns_of("mine", {"mine": ["frage"]}))) == [(0, ["x"])]


@pytest.mark.parametrize("line", ['{"frage": "x"}', '{"question": " "}', "{", "3"])
def test_an_item_without_text_is_an_error_and_names_its_place(line, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text(f'{{"question": "a", "answer": "b"}}\n{line}\n')
    with pytest.raises(InputError, match="item 1") as error:
        list(read_items(find_files(str(tmp_path), "gsm8k"), ["question", "answer"]))
    assert error.value.where and error.value.where.endswith("gsm8k.jsonl")


def test_a_benchmark_without_files_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no file of benchmark 'gsm8k'"):
        find_files(str(tmp_path), "gsm8k")
    with pytest.raises(InputError):
        find_files(str(tmp_path), "../gsm8k")
