"""A finished run to look at and to change: curated once, copied for each test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def finished(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tools: Any) -> Path:
    """RUN of a crawl of three shards, none of whose photos is dropped but the planted copies; shards of ten samples."""
    shared = tmp_path_factory.getbasetemp() / "finished"
    if not shared.exists():
        tools.small_crawl(shared / "raw")
        run_verb(shared / "recipe.yaml", shared / "run", tools.recipe(shared / "raw", select={"nearest": 100}))
    shutil.copytree(shared / "run", tmp_path / "run")
    shutil.copy(shared / "recipe.yaml", tmp_path / "recipe.yaml")
    return tmp_path / "run"


@pytest.fixture
def again(tmp_path: Path) -> Callable[..., None]:
    """again("a.b=c", ...): the same command for `finished`, with overrides."""
    return lambda *overrides, out="run": run_verb(tmp_path / "recipe.yaml", tmp_path / out, None, *overrides)


def run_verb(recipe: Path, out: Path, tree: dict[str, Any] | None, *overrides: str) -> None:
    from megavlm.platform.cli import main

    if tree is not None:
        recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert main(["curate", "run", str(recipe), *overrides, "--out", str(out)]) == 0


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """verb("data remove", ..., code=0) -> its JSON."""
    from megavlm.platform.cli import main

    def call(name: str, *words: object, code: int = 0) -> Any:
        capsys.readouterr()
        exit_code = main([*name.split(), *map(str, words), "--json"])
        captured = capsys.readouterr()
        assert exit_code == code, captured.err
        return json.loads(captured.out)

    return call


@pytest.fixture
def texts(tmp_path: Path, tools: Any) -> Path:
    """RUN of two text sets, 12 and 5 rows of which one has an empty question; shards of four samples."""
    for name, rows in (("math", 12), ("talk", 5)):
        (tmp_path / "text" / name).mkdir(parents=True)
        lines = [{"instruction": f"{name} question {i}?", "input": "", "response": "So it is."} for i in range(rows)]
        if name == "talk":
            lines[2]["response"] = ""
        (tmp_path / "text" / name / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"kind": "text", "path": str(tmp_path / "text"), "sets": {"math": "gpteacher", "talk": "gpteacher"}}
    stages = {"text_ingest": {}, "text_export": {"samples_per_shard": 4}}
    executor = {"name": "in_process", "workers": 0}
    tree = {"name": "texts", "curation": {"source": source, "stages": stages, "executor": executor}}
    run_verb(tmp_path / "texts.yaml", tmp_path / "texts", tree)
    return tmp_path / "texts"
