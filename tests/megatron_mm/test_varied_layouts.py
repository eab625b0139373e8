"""Manifests of images of every shape: what is trained on them is the same on every layout, and the work is shared."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import varied_layouts_worker as worker

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import Parallel

CASES = ["eve packed", "eve apart", "eve text", "eve_v2 packed", "eve_v2 apart"]
LAYOUTS = ["dp4", "dp2 pp2", "tp2 pp2", "pp2 cp2"]
Steps = dict[str, list[dict[str, Any]]]

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("varied")
    worker.prepare(made)
    return made


@pytest.fixture(scope="module")
def alone(folder: Path) -> Steps:
    """What one process does."""
    torch.set_num_threads(1)
    found = worker.run_layout(folder, Parallel())
    backend.shutdown()
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def layouts(folder: Path, on_ranks: Callable[..., None]) -> dict[str, Steps]:
    on_ranks(Path(worker.__file__), 4, folder)
    return json.loads((folder / "results.json").read_text())


def test_layouts_train_as_one_process_does(layouts: dict[str, Steps], alone: Steps) -> None:
    assert list(layouts) == LAYOUTS and set(alone) == set(CASES)
    for layout, case in itertools.product(LAYOUTS, CASES):
        for step, (ours, wanted) in enumerate(zip(layouts[layout][case], alone[case], strict=True)):
            place = f"{layout}, {case}, step {step}"
            assert ours["numbers"][:2] == pytest.approx(wanted["numbers"][:2], abs=1e-5), place
            assert ours["numbers"][2:] == wanted["numbers"][2:], place
            assert sorted(ours["tiles"]) == sorted(wanted["tiles"]) and ours["sizes"] == wanted["sizes"], place


def test_nobody_looks_at_a_tile_s_tokens_more_or_less_than_an_equal_share(layouts: dict[str, Steps]) -> None:
    found = [step["uneven"] for of in layouts.values() for steps in of.values() for step in steps]
    assert max(found) < 1 and any(found)


def test_an_image_cut_off_is_told_once_and_costs_its_sample(layouts: dict[str, Steps], alone: Steps) -> None:
    bad = [f"bad_sample v{worker.CUT}"]
    for found in [*layouts.values(), alone]:
        for case in CASES:
            told = [line for step in found[case] for line in step["told"]]
            assert told == ([] if case.endswith("text") else bad), case


def test_tiles_of_many_sizes_were_among_them(alone: Steps) -> None:
    """And packs of text alone beside those of images, samples of two images, and global batches without any."""
    for case in CASES:
        tiles = [each for step in alone[case] for each in step["tiles"]]
        shapes = {tuple(size) for step in alone[case] for size in step["sizes"]}
        if case.endswith("text"):
            assert not any(tiles) and not shapes
        elif case.endswith("apart"):
            assert {0, 1, 2} <= set(tiles) and len(shapes) > 3
        else:
            assert all(tiles) and len(shapes) > 5
            assert {(14, 56), (56, 14)} <= shapes or {(14, 364), (364, 14)} <= shapes
    losses = [step["numbers"][0] for case in CASES for step in alone[case]]
    assert len({round(loss, 6) for loss in losses}) == len(losses)
