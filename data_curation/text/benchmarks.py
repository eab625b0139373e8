"""Benchmarks to keep out of training data: which columns of their published files hold questions and answers.

Nothing is downloaded. A user puts the files into one folder as NAME.jsonl, .json or .parquet (any suffix that
`reading` knows), or several of them into a folder NAME. Only test splits: training sets are made of training splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megavlm.platform.errors import InputError, did_you_mean
from megavlm.platform.storage import exists, join

from ..sources.tree import find_files as files_below
from .reading import READERS, read_rows, readable
from .sample import BadRow, Row

# Name -> columns, as on Hugging Face at the publisher's place. An answer that is a letter or a number tells nothing and
# is not among them.
COLUMNS: Mapping[str, Sequence[str]] = {
    "ai2d": ("question",),
    "arc": ("question",),  # allenai/ai2_arc
    "chartqa": ("question", "query"),
    "docvqa": ("question",),
    "gqa": ("question",),
    "gsm8k": ("question", "answer"),  # openai/gsm8k
    "hellaswag": ("ctx",),  # Rowan/hellaswag
    "humaneval": ("prompt", "canonical_solution"),  # openai/openai_humaneval
    "ifeval": ("prompt",),
    "infovqa": ("question",),
    "math": ("problem", "solution"),  # EleutherAI/hendrycks_math
    "mathvista": ("question",),  # its `query` adds a hint that every such item has
    "mbpp": ("text", "prompt", "code"),  # google-research-datasets/mbpp; the sanitized split says prompt
    "mmbench": ("question",),
    "mme": ("question",),
    "mmlu": ("question", "choices"),  # cais/mmlu
    "mmlu_pro": ("question", "options"),
    "mmmu": ("question",),
    "ocrbench": ("question",),
    "pope": ("question",),
    "realworldqa": ("question",),
    "scienceqa": ("question",),
    "seed": ("question",),
    "textvqa": ("question",),
    "truthfulqa": ("question",),
    "vizwiz": ("question",),
    "vqav2": ("question",),
    "winogrande": ("sentence",),
}


def columns_of(name: str, own: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The columns to read of a benchmark: the user's `own`, or those known here; raises InputError."""
    columns = own.get(name) or COLUMNS.get(name)
    if columns is None:
        fix = f"{did_you_mean(name, COLUMNS)}, or name its columns: {{{name}: [question]}}"
        raise InputError(f"unknown benchmark '{name}'", where="columns", fix=fix)
    return columns


def find_files(folder: str, name: str) -> list[str]:
    """The files of a benchmark, at any depth of its folder, as a part of the hub's snapshot has them.

    Raises InputError when there are none.
    """
    inside = join(folder, name)
    single = [f"{inside}{suffix}" for suffix in READERS if exists(f"{inside}{suffix}")]
    below = files_below(inside) if exists(inside) else []
    many = [file.url for file in below if file.inside and readable(file.name)]
    if not single + many:
        fix = f"put its test split there as {name}.jsonl or {name}.parquet"
        raise InputError(f"no file of benchmark '{name}'", where=inside, fix=fix)
    return single + many


def read_items(urls: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Item number -> its texts, one for each column that it has.

    Raises InputError for a row that does not parse and an item without text: a benchmark read by half protects by half.
    """
    number = 0
    for url in urls:
        for row in read_rows(url, columns):
            if isinstance(row, BadRow):
                raise InputError(f"item {number}: {row.reason} ({row.detail})", where=url, fix="fetch the file again")
            texts = list(_texts(row, columns))
            if not texts:
                what = f"item {number} has no text in {', '.join(columns)}; it has: {', '.join(map(str, row))}"
                raise InputError(what, where=url, fix="name the benchmark's columns: {NAME: [question]}")
            yield number, texts
            number += 1


def _texts(row: Row, columns: Sequence[str]) -> Iterator[str]:
    for column in columns:
        text = _flat(row.get(column))
        if text.strip():
            yield text


def _flat(value: Any) -> str:
    """A text, or the texts of a list one after the other."""
    if isinstance(value, list):
        return "\n".join(map(_flat, value))
    return value if isinstance(value, str) else ""
