"""The verb on small sets, and a folder of pictures with traps in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.platform.cli import main

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def pictures(tmp_path: Path, tools: Any) -> dict[str, bytes]:
    """Files of the folder `images`, by name; a link in it leads out."""
    made = {"a.jpg": tools.encode(tools.photo(1)), "sub/b.png": tools.encode(tools.photo(2), "PNG")}
    made |= {"sub/c d.jpeg": tools.encode(tools.photo(3)), "noending": tools.encode(tools.photo(4), "WEBP")}
    for name, data in {**made, "broken.jpg": b"no image", "../secret.jpg": made["a.jpg"]}.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    return made


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """convert(kind, rows or path, *options, out="out") -> the verb's JSON; another exit code than `code` fails."""

    def run(kind: str, rows: Any, *options: str, out: str = "out", code: int = 0) -> dict[str, Any]:
        source = rows
        if not isinstance(rows, Path):
            source = tmp_path / "set.json"
            source.write_text(json.dumps(rows))
        exit_code = main(["data", "convert", kind, str(source), str(tmp_path / out), *options, "--json"])
        captured = capsys.readouterr()
        assert exit_code == code, captured.err
        return json.loads(captured.out)

    return run
