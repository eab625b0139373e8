"""A finished run over images of several sizes, shades and captions, near-duplicates and broken files among them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from megavlm.platform.cli import main

CAPTIONS = ("a photo", "fox", "a red fox sleeps under a tree.", "no no no no no no no no no no no no", "see http")


def picture(tools, shard: int, i: int):
    """Each fifth one is so dim that its hash says little."""
    image = tools.photo(100 * shard + i, 90 + 10 * (i % 6), 80 + 7 * (i % 5))
    return image.point(lambda value: 110 + value // 4) if i % 5 == 2 else image


def samples(tools, shard: int):
    for i in range(14):
        image = picture(tools, shard, i)
        meta = json.dumps({"score": (i * 7 % 10) / 10}).encode()
        yield tools.raw(f"{shard}k{i:02d}", tools.encode(image), caption=CAPTIONS[i % 5], meta=meta)
        if i % 4 == 0:
            copy = image.resize((image.width - 2 * (i // 4), image.height))
            yield tools.raw(f"{shard}c{i:02d}", tools.encode(copy, quality=20 + 5 * i), caption="a copy", meta=meta)
    yield tools.raw(f"{shard}broken", b"no image")
    yield tools.raw(f"{shard}flat", tools.encode(tools.photo(1).point(lambda value: 120 + value // 64)))


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder that all tests share."""
    return Path(tmp_path_factory.mktemp("what-if"))


@pytest.fixture
def finished(place, tools) -> Path:
    """RUN of a recipe with every judging stage, made once; decontamination comes after cluster."""
    if not (place / "run" / "finished").exists():
        make(place, tools)
    return place / "run"


def make(root: Path, tools) -> None:
    (root / "eval").mkdir()
    for i in range(3):
        for number in (3, 7):
            data = tools.encode(picture(tools, i, number), quality=60)
            (root / "eval" / f"item{i}-{number}.jpg").write_bytes(data)
    for shard in range(3):
        tools.write_shard(root / "raw", f"{shard:05d}", list(samples(tools, shard)))
    base = tools.recipe(root / "raw", deduplicate={"hash_radius": 20, "epsilon": 0.002}, select={"nearest": 7})
    stages = base["curation"]["stages"]
    decontaminate = {"against": {"eval": str(root / "eval")}, "radius": 20}
    order = ("ingest", "filter", "embed", "cluster", "assign")
    base["curation"]["stages"] = {name: stages[name] for name in order} | {
        "decontaminate": decontaminate,
        "deduplicate": stages["deduplicate"],
        "select": stages["select"],
        "check_captions": {"source": "ingest"},
        "export": stages["export"],
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    assert main(["curate", "run", str(root / "recipe.yaml"), "--out", str(root / "run")]) == 0


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a run's folder."""

    def copy(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "copy"))

    return copy


@pytest.fixture
def ask(capsys):
    """ask(run, *words, code=0) -> the verb's JSON."""

    def select(run: Path, *words: str, code: int = 0, before: tuple[str, ...] = ()):
        exit_code = main(["curate", "select", str(run), *before, "--json", "--what-if", *words])
        captured = capsys.readouterr()
        assert exit_code == code, captured.err
        return json.loads(captured.out)

    return select


@pytest.fixture
def really(capsys):
    """really(copy, *words) -> the funnel of `curate run` with these options."""

    def run(folder: Path, *words: str):
        overrides = [f"curation.stages.{word}" for word in words]
        assert main(["curate", "run", f"{folder}/config.yaml", *overrides, "--out", str(folder), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["funnel"]

    return run
