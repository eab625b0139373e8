"""Tars written by tarfile alone, and strategies for samples."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import strategies as st


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """make_tar([(name or TarInfo, bytes), ...], format=...) -> path of a foreign tar."""

    def run(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
        path = tmp_path / "foreign.tar"
        with tarfile.open(path, "w", format=format) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name) if isinstance(name, str) else name
                info.size = len(data) if info.isreg() else 0
                tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
        return path

    return run


@pytest.fixture(scope="session")
def samples_strategy() -> st.SearchStrategy[dict[str, dict[str, bytes]]]:
    """Samples by key; keys with folders, blanks, accents, and longer than a plain tar header holds."""
    letters = st.text(st.characters(codec="utf-8", exclude_characters="./\\:\0", exclude_categories=["Cs"]), min_size=1)
    part = st.one_of(st.sampled_from(["0001", "a b", "é", "x" * 120]), letters.map(lambda text: text[:20]))
    keys = st.lists(part, min_size=1, max_size=3).map("/".join)
    exts = st.sampled_from(["jpg", "txt", "json", "seg.png"])
    fields = st.dictionaries(exts, st.binary(max_size=1500), min_size=1, max_size=4)
    return st.dictionaries(keys, fields, min_size=1, max_size=6)
