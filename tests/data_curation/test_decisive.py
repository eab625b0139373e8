"""Options that only say who does the work redo nothing; those that decide what comes of it do the stage anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megavlm.data_curation.kmeans import rows, sample
from megavlm.data_curation.kmeans.training import Training


def done(run: Path) -> dict[str, int]:
    """Stage -> how many tasks of it were ever done, the ledger's versions telling of those done again."""
    files = (run / "ledger").glob("*/all.jsonl")
    return {file.parent.name: sum(map(version, file.read_text().splitlines())) for file in files}


def version(line: str) -> int:
    return int(json.loads(line)["version"])


@pytest.mark.parametrize("options", [{"decode_threads": 3}, {"prefetch": 5}])
def test_how_images_are_decoded_ahead_redoes_nothing(crawl, tools, curate, tmp_path, options):
    curate(tools.recipe(crawl[0]))
    before = done(tmp_path / "run")
    curate(tools.recipe(crawl[0], embed=options))
    assert done(tmp_path / "run") == before


def test_another_batch_is_another_result(crawl, tools, curate, tmp_path):
    """Matrix products of another shape may add in another order."""
    curate(tools.recipe(crawl[0]))
    before = done(tmp_path / "run")
    curate(tools.recipe(crawl[0], embed={"embedder": {"name": "pixels", "batch_size": 5}}))
    after = done(tmp_path / "run")
    assert all((after[stage] > count) == (stage not in ("ingest", "filter")) for stage, count in before.items())


def test_another_number_of_parts_redoes_no_clustering_that_is_done(crawl, tools, curate, tmp_path):
    curate(tools.recipe(crawl[0], cluster={"clusters": 5, "parts": 2}))
    before = done(tmp_path / "run")
    for parts in (2, 3, 1):
        curate(tools.recipe(crawl[0], cluster={"clusters": 5, "parts": parts}))
        assert done(tmp_path / "run") == before


def test_a_training_that_broke_off_goes_on_with_another_number_of_parts(crawl, tools, curate, tmp_path, monkeypatch):
    for module in (rows, sample):
        monkeypatch.setattr(module, "ROWS_PER_PIECE", 8)

    def recipe(parts: int) -> dict[str, Any]:
        return tools.recipe(crawl[0], cluster={"clusters": 6, "iterations": 4, "parts": parts, "center": True})

    curate(recipe(1), out="whole")
    add_for = Training.add_for

    def dies(self: Training, iteration: int, part: int) -> None:
        if iteration == 1:
            raise OSError("gone")
        add_for(self, iteration, part)

    with monkeypatch.context() as broken:
        broken.setattr(Training, "add_for", dies)
        curate(recipe(2), code=1)
    curate(recipe(3))
    centroids = [np.load(tmp_path / out / "cluster" / "centroids.npy") for out in ("whole", "run")]
    assert centroids[0].tobytes() == centroids[1].tobytes()
