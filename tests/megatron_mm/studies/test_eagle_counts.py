"""EAGLE's published parameter counts from studies' dry runs: figure 4's sets of experts, and table 4's fusions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.studies.verb import run_main

CLIP = {"name": "clip", "image_size": 336, "layer": -1, "class_token": "dropped"}
EXPERTS = {"clip": CLIP} | {name: {"name": name} for name in ("convnext", "dinov2", "sam", "eva02", "pix2struct")}
UNUSED_HEAD = 3072 + 3072 + 3072 * 1024  # of the published ConvNeXt: norm and projection, which are not built
MIXTURE = [f"model.encoder={json.dumps({'name': 'mixture', 'image_size': 1024, 'experts': EXPERTS})}"]
FULL_SIZE = [
    "stages.language=null",
    "stages.gate=null",
    "stages.sft={after: [], blind: []}",
    "stages.sft.mixture.sequence_length=8192",
    "model.tiling={tile: 1024, max_tiles: 1}",
]
# Millions, with an MLP of 1024 channels (figure 4).
FIGURE_4 = {
    "clip_convnext": 1155.2, "clip_convnext_dinov2": 1460.6, "clip_convnext_sam": 1463.9,
    "clip_convnext_pix2struct": 1669.6, "clip_convnext_eva02": 1459.6, "clip_convnext_dinov2_eva02": 1765.1,
    "clip_convnext_sam_eva02": 1768.4, "clip_convnext_eva02_pix2struct": 1974.1,
    "clip_convnext_dinov2_eva02_pix2struct": 2279.5, "clip_convnext_sam_eva02_pix2struct": 2282.8,
    "clip_convnext_dinov2_sam_eva02_pix2struct": 2588.2,
}  # fmt: skip
# Millions, with MLPs of the 4096 channels of Vicuna-7B (table 4). The shapes of its other two rows are unpublished.
CONCAT, APPEND = ([f"model.connector={{name: {name}}}"] for name in ("channel_concat", "sequence_append"))
TWO, THREE = (["model.encoder.use=[clip, convnext]"], ["model.encoder.use=[clip, convnext, sam]"])
TABLE_4 = {
    "append": ([*MIXTURE, *TWO, *APPEND], 1200),
    "concat": ([*MIXTURE, *TWO, *CONCAT], 1184),
    "llava_hr": (["model.encoder={name: llava_hr}", "model.connector={name: mlp}"], 1219),
    "append_sam": ([*MIXTURE, *THREE, *APPEND], 1529),
    "concat_sam": ([*MIXTURE, *THREE, *CONCAT], 1495),
}


@pytest.fixture
def dry(study_tree: dict[str, Any], write_study: Any, told: Callable[[], Any], tmp_path: Path) -> Callable[..., Any]:
    """`dry(overrides=[...], ...)`: what `study run --dry-run --json` tells of a study at published size."""

    def run(overrides: list[str], **changes: Any) -> Any:
        tree = {key: study_tree[key] for key in ("question", "recipe")}
        scores = {"vqa": {"stage": "sft", "suite": "vqa"}}
        path = write_study(tree | {"scores": scores, "equal": [], "overrides": [*FULL_SIZE, *overrides]} | changes)
        assert run_main([str(path), "--out", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
        return told()

    return run


def test_figure_4s_sets_count_what_the_paper_says(dry: Callable[..., Any]) -> None:
    search = {"over": "model.encoder.use", "candidates": list(EXPERTS), "start": ["clip", "convnext"], "score": "vqa"}
    plan = dry([*MIXTURE, *CONCAT, "model.decoder.hidden=1024"], search=search)
    counted = {row["variant"]: (row["parameters"]["vision"] + UNUSED_HEAD) / 1e6 for row in plan["search"]["reachable"]}
    assert len(counted) == 16  # those that the paper has no figure of, too
    assert {name: counted[name] for name in FIGURE_4} == pytest.approx(FIGURE_4, abs=0.2)


def test_table_4s_fusions_count_what_the_paper_says(dry: Callable[..., Any]) -> None:
    variants = [{"name": name, "overrides": overrides} for name, (overrides, _) in TABLE_4.items()]
    plan = dry(["model.decoder.hidden=4096"], variants=variants)
    counted = {run["variant"]: (run["axes"]["vision"] + UNUSED_HEAD) / 1e6 for run in plan["runs"]}
    assert counted == pytest.approx({name: total for name, (_, total) in TABLE_4.items()}, abs=1.0)
