"""Small snapshots of benchmarks in their published columns, and an engine that answers from a table."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from megavlm.megatron_mm.evaluation.engines.base import Ask, Unanswered

STORED = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # the hub's image column
TOO_LONG = "too long"


def picture(text: str) -> bytes:
    image = Image.new("RGB", (120, 40), "white")
    ImageDraw.Draw(image).text((5, 10), text, fill="black")
    target = io.BytesIO()
    image.save(target, "PNG")
    return target.getvalue()


def stored(text: str) -> dict[str, Any]:
    return {"bytes": picture(text), "path": f"{text}.png"}


def write_rows(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], images: Sequence[str] = ("image",)) -> Path:
    """`rows` as the Parquet file `name` under `folder`; columns in `images` hold stored images or lists of them."""
    columns = {}
    for column in rows[0]:
        values = [row[column] for row in rows]
        many = isinstance(values[0], list)
        columns[column] = pa.array(values, (pa.list_(STORED) if many else STORED) if column in images else None)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


@dataclasses.dataclass
class TableEngine:
    """Answers a question that holds a known text as the table says; keeps what it was asked."""

    answers: Mapping[str, str]
    name: str = "table"
    max_length: int = 4096
    asked: list[Ask] = dataclasses.field(default_factory=list)

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        self.asked += asks
        return [self._answer(ask) for ask in asks]

    def _answer(self, ask: Ask) -> str:
        text = ask.messages[-1]["content"]
        if TOO_LONG in text:
            return Unanswered("9000 tokens do not fit into 4096")
        assert text.count("<image>") == len(ask.images)
        return next(answer for known, answer in self.answers.items() if known in text)


@pytest.fixture(scope="session")
def table_engine() -> Callable[[Mapping[str, str]], TableEngine]:
    """`table_engine({text in a question: answer}) -> engine`."""
    return TableEngine


@pytest.fixture(scope="session")
def parquet() -> Callable[..., Path]:
    """`parquet(folder, name, rows, images=("image",)) -> path` of a Parquet file as the hub lays them out."""
    return write_rows


@pytest.fixture(scope="session")
def shot() -> Callable[[str], dict[str, Any]]:
    """`shot(text) -> {"bytes", "path"}`: a rendered image as the hub stores it."""
    return stored
